/* SPDX-License-Identifier: Apache-2.0 */
/* transport_host.h - tells apart the hosts, and the containers on them, that a process may run in.
 */
#ifndef WEIR_TRANSPORT_HOST_H
#define WEIR_TRANSPORT_HOST_H

#include "transport/transport_key.h"

/* This boot of this host, and the process' namespace of a kind ("pid", "net"): equal texts, same
 * place. */
void weir_transport_host(const char *kind, char out[WEIR_KEY_TEXT]);

#endif
