/* SPDX-License-Identifier: Apache-2.0 */
/* web_assets.h - the files of src/directory/web/ as the build puts them into the library. */
#ifndef WEIR_DIRECTORY_WEB_ASSETS_H
#define WEIR_DIRECTORY_WEB_ASSETS_H

#include <stddef.h>

extern const unsigned char weir_web_fleet_html[], weir_web_fleet_css[], weir_web_fleet_js[],
    weir_web_fleet_svg[];
extern const size_t weir_web_fleet_html_bytes, weir_web_fleet_css_bytes, weir_web_fleet_js_bytes,
    weir_web_fleet_svg_bytes;

#endif
