/* SPDX-License-Identifier: Apache-2.0 */
/* inference_engine.c - one engine, several workers: each hook is called once, whoever comes first,
 * and the others hear the same. */
#include "broadcast/inference_core.h"

void weir_inference_engine_open(weir_inference_engine *engine, const weir_engine_hooks *hooks,
                                uint32_t n_workers)
{
    *engine = (weir_inference_engine){ .hooks = *hooks, .n_workers = n_workers };
    pthread_mutex_init(&engine->lock, NULL);
}

void weir_inference_engine_close(weir_inference_engine *engine)
{
    pthread_mutex_destroy(&engine->lock);
}

/* ---- with the lock ---------------------------------------------------------------------------*/

static weir_status pause_it(weir_inference_engine *engine)
{
    weir_status status = WEIR_OK;
    if (!engine->is_paused && engine->hooks.pause != NULL)
        status = engine->hooks.pause(engine->hooks.context);
    engine->is_paused |= status == WEIR_OK;
    return status;
}

static void resume_it(weir_inference_engine *engine)
{
    if (engine->is_paused && engine->hooks.resume != NULL)
        engine->hooks.resume(engine->hooks.context);
    engine->is_paused = false;
}

/* ---- asked -----------------------------------------------------------------------------------*/

weir_status weir_inference_engine_ask_pause(weir_inference_engine *engine)
{
    pthread_mutex_lock(&engine->lock);
    weir_status status = pause_it(engine);
    engine->is_asked_to |= status == WEIR_OK;
    pthread_mutex_unlock(&engine->lock);
    if (status != WEIR_OK)
        return weir_fail(status, "the engine did not pause: %s", weir_status_text(status));
    return WEIR_OK;
}

void weir_inference_engine_ask_resume(weir_inference_engine *engine)
{
    pthread_mutex_lock(&engine->lock);
    engine->is_asked_to = false;
    resume_it(engine);
    pthread_mutex_unlock(&engine->lock);
}

bool weir_inference_engine_is_asked(weir_inference_engine *engine)
{
    pthread_mutex_lock(&engine->lock);
    bool is_asked_to = engine->is_asked_to;
    pthread_mutex_unlock(&engine->lock);
    return is_asked_to;
}

bool weir_inference_engine_is_paused(weir_inference_engine *engine)
{
    pthread_mutex_lock(&engine->lock);
    bool is_paused = engine->is_paused;
    pthread_mutex_unlock(&engine->lock);
    return is_paused;
}

/* ---- a round ---------------------------------------------------------------------------------*/

void weir_inference_engine_begin(weir_inference_engine *engine, bool may_run)
{
    pthread_mutex_lock(&engine->lock);
    engine->may_run = may_run;
    engine->has_failed = engine->has_taken = false;
    engine->n_whole = 0;
    pthread_mutex_unlock(&engine->lock);
}

weir_status weir_inference_engine_pause(weir_inference_engine *engine)
{
    pthread_mutex_lock(&engine->lock);
    weir_status status = engine->has_failed ? engine->failed : pause_it(engine);
    engine->has_failed |= status != WEIR_OK;
    engine->failed = status;
    pthread_mutex_unlock(&engine->lock);
    return status;
}

weir_status weir_inference_engine_take(weir_inference_engine *engine, uint64_t version)
{
    pthread_mutex_lock(&engine->lock);
    if (!engine->has_taken)
        engine->taken = engine->hooks.postprocess(engine->hooks.context, version);
    engine->has_taken = true;
    weir_status status = engine->taken;
    pthread_mutex_unlock(&engine->lock);
    return status;
}

void weir_inference_engine_is_whole(weir_inference_engine *engine)
{
    pthread_mutex_lock(&engine->lock);
    if (++engine->n_whole == engine->n_workers && engine->may_run && !engine->is_asked_to)
        resume_it(engine);
    pthread_mutex_unlock(&engine->lock);
}

void weir_inference_engine_end(weir_inference_engine *engine, bool may_run)
{
    pthread_mutex_lock(&engine->lock);
    if (may_run && !engine->is_asked_to)
        resume_it(engine);
    pthread_mutex_unlock(&engine->lock);
}
