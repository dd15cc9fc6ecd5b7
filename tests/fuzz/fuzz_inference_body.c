/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_inference_body.c - any bytes as the bodies of an orchestrator's calls, and as what a
 * directory says of its fleet: what is taken is within its bounds, what is not is said on one line.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "broadcast/inference_body.h"
#include "broadcast/trainer_look.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void demand(int holds)
{
    if (!holds)
        abort();
}

static int is_plain(const char *text)
{
    for (; *text != '\0'; text++) {
        if ((unsigned char)*text <= ' ' || *text == 0x7f)
            return 0;
    }
    return 1;
}

static void join(const char *body, size_t n, uint32_t tp, uint32_t dp)
{
    weir_join_wish wish;
    if (weir_join_wish_read(body, n, tp, dp, &wish) != WEIR_OK) {
        demand(weir_last_error()[0] != '\0' && strchr(weir_last_error(), '\n') == NULL);
        return;
    }
    demand(wish.port >= 1 && wish.port <= 65535);
    demand(wish.host[0] != '\0' && is_plain(wish.host) && is_plain(wish.run));
    demand(wish.first_rank >= 1);
    demand((uint64_t)wish.first_rank + tp * dp - 1 <= wish.n_workers_of_all);
    demand(wish.timeout_ms <= WEIR_MOST_TIMEOUT_S * 1000u);
    demand(memchr(wish.server, '\0', sizeof(wish.server)) != NULL);
    demand(weir_join_wish_equal(&wish, &wish));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    weir_update_wish update;
    weir_trainer_sight sight;
    const weir_trainer_wish wish = {
        .model = "m", .run = "run", .holds = true, .held = 6, .held_uid = "six"
    };
    char *text = malloc(size + 1);
    demand(text != NULL);
    memcpy(text, data, size);
    text[size] = '\0';
    join(text, size, 1, 1);
    join(text, size, 4, 2);
    if (weir_update_wish_read(text, size, &update) == WEIR_OK)
        demand(update.version <= INT64_MAX && update.timeout_ms <= WEIR_MOST_TIMEOUT_S * 1000u);
    if (weir_trainer_sight_read(text, &wish, &sight) == WEIR_OK)
        demand(memchr(sight.others, '\0', sizeof(sight.others)) != NULL);
    free(text);
    return 0;
}
