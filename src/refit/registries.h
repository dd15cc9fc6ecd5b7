/* SPDX-License-Identifier: Apache-2.0 */
/* registries.h - what the ranks of a trainer tell each other of what they hold, until all know the
 * same.
 *
 * A rank hands out its text under its digest, and a head that says which digest that is and which
 * texts of all ranks it goes by: a digest of them all, which it has once it has heard of every
 * rank. An exchange ends when all ranks go by the same texts. Who is started anew with what the
 * rank held before finds the others going by those texts already, and asks nothing of them.
 *
 * Threads    the trainer's; weir_registries_manifest() the manifest service's.
 * Errors     ERR_TIMED_OUT names a rank that has not come, or goes by other texts; ERR_CORRUPT and
 *            ERR_LAYOUT one that says what cannot be.
 */
#ifndef WEIR_REFIT_REGISTRIES_H
#define WEIR_REFIT_REGISTRIES_H

#include "refit/trainer.h"

typedef struct weir_registries weir_registries;

/* Of a trainer whose rank and n_ranks are set. Gives *out. */
weir_status weir_registries_open(weir_trainer *trainer, weir_registries **out);
void weir_registries_close(weir_registries *registries); /* accepts NULL */

/* Hands out `text` from now on, instead of the one before, and waits until all ranks go by the same
 * texts; at most timeout_ms. What is handed out stays, whatever this returns. */
weir_status weir_registries_exchange(weir_registries *registries, const char *text, size_t n_bytes);

/* Takes back what the last exchange ended with: this rank has made no plan of it, and others cannot
 * go by what it holds until it registers anew. */
void weir_registries_withdraw(weir_registries *registries);

/* What a rank has said in the last exchange; until weir_registries_forget(). */
typedef struct weir_registry_text {
    const char *text;
    size_t n_bytes;
    const char *worker; /* its id */
} weir_registry_text;
weir_registry_text weir_registries_of(const weir_registries *registries, uint32_t rank);
/* Gives the memory of other ranks' texts back. */
void weir_registries_forget(weir_registries *registries);

/* For the trainer's manifest service, which holds the trainer's lock while it uses what it is
 * given: the head, "registry", or the text, "registry-" and 32 hex digits. False when it is none of
 * them. */
bool weir_registries_manifest(const weir_registries *registries, const char *uid,
                              const void **out_bytes, size_t *out_n_bytes, const char **out_digest);

#endif
