/* SPDX-License-Identifier: Apache-2.0 */
/* rpc_route.c - a list of places, and one turn around it per call. */
#include "rpc/rpc_route.h"

#include <stdio.h>
#include <string.h>

#include "base/alloc.h"

#define NS_PER_MS 1000000ull
#define MOST_SHARE_MS 10000u /* then a place is silent, and another one has the word */
#define SAID_BYTES 200       /* of one place */

/* ---- the list --------------------------------------------------------------------------------*/

static size_t count_places(const char *addresses)
{
    size_t n = 1;
    for (; *addresses != '\0'; addresses++)
        n += *addresses == ',';
    return n;
}

static weir_status read_place(const char *text, size_t n, weir_rpc_place *place)
{
    char one[WEIR_RPC_ADDRESS_TEXT];
    while (n > 0 && *text == ' ') {
        text++;
        n--;
    }
    while (n > 0 && text[n - 1] == ' ')
        n--;
    if (n >= sizeof(one))
        return weir_fail(WEIR_ERR_INVALID, "address '%.80s...' is not HOST:PORT", text);
    memcpy(one, text, n);
    one[n] = '\0';
    weir_status status = weir_rpc_address_parse(one, &place->address);
    if (status == WEIR_OK)
        weir_rpc_address_format(&place->address, place->authority);
    return status;
}

weir_status weir_rpc_route_open(const char *addresses, weir_rpc_route *route)
{
    *route = (weir_rpc_route){ .places = NULL };
    const char *text = addresses != NULL ? addresses : "";
    size_t n_places = count_places(text);
    if (n_places > WEIR_RPC_MOST_PLACES)
        return weir_fail(WEIR_ERR_INVALID, "%zu addresses, at most %u are possible", n_places,
                         WEIR_RPC_MOST_PLACES);
    route->places = weir_alloc_zeroed(n_places, sizeof(*route->places));
    if (route->places == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (; route->n_places < n_places; route->n_places++) {
        size_t n = strcspn(text, ",");
        weir_status status = read_place(text, n, &route->places[route->n_places]);
        if (status != WEIR_OK) {
            weir_rpc_route_close(route);
            return status;
        }
        text += n + (text[n] == ',');
    }
    return WEIR_OK;
}

void weir_rpc_route_close(weir_rpc_route *route)
{
    weir_free(route->places);
    *route = (weir_rpc_route){ .places = NULL };
}

weir_rpc_place *weir_rpc_route_place(const weir_rpc_route *route)
{
    return &route->places[route->current];
}

/* ---- one call --------------------------------------------------------------------------------*/

void weir_rpc_round_begin(const weir_rpc_route *route, weir_rpc_round *round)
{
    round->n_left = route->n_places - 1;
    round->n_hosts = 0;
    round->n_said = 0;
    round->said[0] = '\0';
}

weir_deadline weir_rpc_round_deadline(const weir_rpc_round *round, weir_deadline deadline)
{
    if (round->n_left == 0)
        return deadline;
    unsigned share_ms = weir_deadline_left_ms(deadline) / (unsigned)(round->n_left + 1);
    return weir_deadline_in(share_ms < MOST_SHARE_MS ? share_ms : MOST_SHARE_MS);
}

static void note(weir_rpc_round *round, const char *authority)
{
    size_t room = sizeof(round->said) - round->n_said;
    int n = snprintf(round->said + round->n_said, room, "%s%.120s: %.*s",
                     round->n_said != 0 ? "; " : "", authority, SAID_BYTES, weir_last_error());
    round->n_said += (size_t)n < room ? (size_t)n : room - 1;
}

/* Another address of the same host: a name may stand for several servers. */
static bool move_within(weir_rpc_place *place, weir_rpc_round *round, bool may_go_on)
{
    if (place->pick.n < 2)
        return false;
    place->pick.index = (place->pick.index + 1) % place->pick.n;
    round->n_hosts++;
    return may_go_on && round->n_hosts < place->pick.n;
}

static bool move_on(weir_rpc_route *route, weir_rpc_round *round, bool may_go_on)
{
    route->current = (route->current + 1) % route->n_places;
    if (round->n_left == 0 || !may_go_on)
        return false;
    round->n_left--;
    round->n_hosts = 0;
    return true;
}

bool weir_rpc_round_next(weir_rpc_route *route, weir_rpc_round *round, weir_status failed,
                         bool was_reached, weir_deadline deadline)
{
    weir_rpc_place *place = weir_rpc_route_place(route);
    bool has_time = !weir_deadline_passed(deadline);
    bool goes_on =
        move_within(place, round, has_time && was_reached && failed == WEIR_ERR_PEER_LOST) ||
        move_on(route, round, has_time);
    if (route->n_places > 1 || place->pick.n > 1)
        route->n_moves++;
    if (goes_on || round->n_said != 0)
        note(round, place->authority);
    if (!goes_on && round->n_said != 0)
        weir_fail(failed, "%s", round->said);
    return goes_on;
}
