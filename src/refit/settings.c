/* SPDX-License-Identifier: Apache-2.0 */
/* settings.c - copies of the strings that options point to. */
#include "refit/settings.h"

#include <string.h>

#include "base/alloc.h"

weir_status weir_settings_copy_text(char **out, const char *text)
{
    *out = weir_strdup(text);
    return text != NULL && *out == NULL ? WEIR_ERR_NO_MEMORY : WEIR_OK;
}

weir_status weir_settings_config(const char *config, weir_config **out)
{
    const char *text = config + strspn(config, " \t\r\n");
    return *text == '{' ? weir_config_parse(text, "config", out) : weir_config_open(config, out);
}

weir_status weir_settings_open(weir_settings *settings, const weir_settings_given *given)
{
    weir_status status = weir_settings_copy_text(&settings->family, given->family);
    if (status == WEIR_OK)
        status = weir_settings_copy_text(&settings->layout, given->layout);
    if (status == WEIR_OK)
        status = weir_settings_copy_text(&settings->conversion, given->conversion);
    if (status == WEIR_OK)
        status = weir_settings_copy_text(&settings->transport, given->transport);
    if (status == WEIR_OK && given->config != NULL)
        status = weir_settings_config(given->config, &settings->config);
    return status;
}

void weir_settings_close(weir_settings *settings)
{
    weir_config_close(settings->config);
    weir_free(settings->transport);
    weir_free(settings->conversion);
    weir_free(settings->layout);
    weir_free(settings->family);
    *settings = (weir_settings){ 0 };
}
