/* SPDX-License-Identifier: Apache-2.0 */
/* ucx_dial.c - the way to a rank of a group that listens somewhere: its addresses, one after
 * another. Nothing here waits; the descriptor is watched by whoever dials.
 */
#include <string.h>

#include "transport/transport_host.h"
#include "transport/ucx_group.h"

#define CONNECT_MS 2000u /* for one address, when others may be better; and for its answer */

uint64_t weir_ucx_place(void)
{
    char place[WEIR_KEY_TEXT] = "";
    weir_digest digest = { 0, 0 };
    weir_transport_host("net", place);
    weir_digest_add(&digest, place, 1, strlen(place));
    return digest.product ^ digest.sum;
}

/* Ranks of one host and network namespace meet by its loopback. */
static bool nth_address(const weir_ucx_group_key *to, unsigned n, weir_ip_address *out)
{
    static const weir_ip_address loopback = { 4, { 127, 0, 0, 1 } };
    unsigned n_own = to->place == weir_ucx_place() ? 1 : 0;
    if (n >= n_own + to->n_addresses)
        return false;
    *out = n < n_own ? loopback : to->addresses[n - n_own];
    return true;
}

ucx_dialled weir_ucx_dial_next(ucx_dial *dial)
{
    weir_ip_address address;
    if (!nth_address(&dial->to, dial->next_address, &address)) {
        ucx_dialled outcome = dial->next_address == 0 ? UCX_DIAL_NOWHERE : UCX_DIAL_ALL_TRIED;
        dial->next_address = 0;
        return outcome;
    }
    dial->next_address++;
    dial->link->fd = weir_ucx_connect_begin(&address, dial->to.port);
    if (dial->link->fd < 0)
        return UCX_DIAL_NOT_YET;
    dial->link->until = weir_deadline_in(CONNECT_MS);
    dial->connecting = true;
    return UCX_DIAL_BEGUN;
}

bool weir_ucx_dial_stands(ucx_dial *dial)
{
    if (!weir_ucx_connect_stands(dial->link->fd)) {
        weir_ucx_dial_drop(dial);
        return false;
    }
    dial->connecting = false;
    return true;
}

void weir_ucx_dial_await_answer(ucx_dial *dial)
{
    dial->link->until = weir_deadline_in(CONNECT_MS);
    dial->unanswered = true;
}

void weir_ucx_dial_check_time(ucx_dial *dial)
{
    if ((dial->connecting || dial->unanswered) && weir_deadline_passed(dial->link->until))
        weir_ucx_dial_drop(dial);
}

void weir_ucx_dial_drop(ucx_dial *dial)
{
    weir_ucx_link_close(dial->link);
    dial->connecting = dial->unanswered = false;
}
