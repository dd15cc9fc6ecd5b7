/* SPDX-License-Identifier: Apache-2.0 */
/* publish_attempt.h - which attempt at a number a trainer rank's shard goes into, where the
 * directory does not say: one of ModelExpress takes any. */
#ifndef WEIR_REFIT_PUBLISH_ATTEMPT_H
#define WEIR_REFIT_PUBLISH_ATTEMPT_H

#include "refit/attempts.h"
#include "refit/trainer.h"

/* Before this rank puts a shard into the version: OK when it may. IN_PROGRESS: the attempt is over,
 * the next one is its; what ended it, if this rank did, is in `attempt`, whose content is set. */
weir_status weir_publish_look(weir_trainer *trainer, const weir_version_record *version,
                              weir_attempt *attempt);

#endif
