/* SPDX-License-Identifier: Apache-2.0 */
/* mesh_shards.c - cuts a checkpoint as a mesh does. What a rank holds, the library says. */
#include "mesh_shards.h"

#include <stdlib.h>
#include <string.h>

#define SHARD_ALIGNMENT 64u

/* Copies a box out of a row-major tensor, run by run. */
static void copy_box(const weir_tensor *source, const weir_box *box, unsigned char *out)
{
    size_t element_bytes = weir_dtype_bits(source->dtype) / 8;
    uint32_t rank = source->shape.rank;
    uint64_t at[WEIR_MAX_RANK];
    memcpy(at, box->lo, sizeof(at));
    uint32_t last = rank > 0 ? rank - 1 : 0;
    size_t run_bytes = (rank > 0 ? box->hi[last] - box->lo[last] : 1) * element_bytes;
    for (;;) {
        uint64_t element = 0;
        for (uint32_t d = 0; d < rank; d++)
            element = element * source->shape.dim[d] + at[d];
        memcpy(out, (const unsigned char *)source->data + element * element_bytes, run_bytes);
        out += run_bytes;
        uint32_t d = last;
        while (d > 0 && ++at[d - 1] == box->hi[d - 1]) {
            at[d - 1] = box->lo[d - 1];
            d--;
        }
        if (d == 0)
            return;
    }
}

static weir_status bytes_of(const weir_mesh_box *box, uint64_t *out_n_bytes)
{
    weir_shape shape = weir_box_shape(&box->box);
    weir_status status = weir_tensor_bytes(box->source->dtype, &shape, out_n_bytes);
    *out_n_bytes = (*out_n_bytes + SHARD_ALIGNMENT - 1) / SHARD_ALIGNMENT * SHARD_ALIGNMENT;
    return status;
}

static weir_status copy_boxes(const weir_mesh_box *boxes, size_t n, weir_mesh_shards *out)
{
    uint64_t n_bytes = 0, total_bytes = 0;
    for (size_t i = 0; i < n; i++) {
        weir_status status = bytes_of(&boxes[i], &n_bytes);
        if (status != WEIR_OK)
            return status;
        total_bytes += n_bytes;
    }
    out->shards = calloc(n + 1, sizeof(*out->shards));
    out->memory = malloc(total_bytes + 1);
    if (out->shards == NULL || out->memory == NULL)
        return WEIR_ERR_NO_MEMORY;
    unsigned char *at = out->memory;
    for (size_t i = 0; i < n; i++) {
        const weir_tensor *source = boxes[i].source;
        out->shards[out->n_shards++] =
            (weir_tensor_shard){ { source->name, source->dtype, weir_box_shape(&boxes[i].box), at },
                                 source->shape,
                                 boxes[i].box };
        copy_box(source, &boxes[i].box, at);
        bytes_of(&boxes[i], &n_bytes);
        at += n_bytes;
    }
    return WEIR_OK;
}

static weir_status open_mapping(const weir_mesh_cut *cut, const weir_config *config,
                                const weir_tensor *tensors, size_t n_tensors, weir_mapping **out)
{
    weir_mapping_options options = WEIR_MAPPING_OPTIONS_INIT;
    options.family = cut->family;
    options.layout = cut->layout;
    options.conversion = cut->conversion;
    options.config = config;
    options.ignore = cut->ignore;
    options.n_ignore = cut->n_ignore;
    return weir_mapping_open(&options, tensors, n_tensors, out);
}

static weir_status cut_out(const weir_mesh_cut *cut, const weir_mapping *mapping,
                           weir_mesh_shards *out)
{
    weir_trainer_mesh mesh;
    weir_mesh_box *boxes = NULL;
    size_t n = 0;
    weir_status status = weir_trainer_mesh_parse(cut->mesh, &mesh);
    if (status == WEIR_OK && cut->owners != NULL)
        status = weir_trainer_mesh_set_owners(&mesh, cut->owners);
    if (status != WEIR_OK)
        return status;
    status = weir_trainer_mesh_boxes(&mesh, mapping, cut->rank, &boxes, &n);
    if (status == WEIR_OK)
        status = copy_boxes(boxes, n, out);
    weir_mesh_boxes_free(boxes);
    weir_expert_map_free(mesh.expert_owners);
    return status;
}

bool weir_mesh_shards_cut(const weir_mesh_cut *cut, const weir_tensor *tensors, size_t n_tensors,
                          weir_mesh_shards *out)
{
    weir_config *config = NULL;
    weir_mapping *mapping = NULL;
    *out = (weir_mesh_shards){ 0 };
    weir_status status = WEIR_OK;
    if (cut->config != NULL && cut->config[0] != '\0')
        status = weir_config_open(cut->config, &config);
    if (status == WEIR_OK)
        status = open_mapping(cut, config, tensors, n_tensors, &mapping);
    if (status == WEIR_OK)
        status = cut_out(cut, mapping, out);
    weir_mapping_close(mapping);
    weir_config_close(config);
    if (status == WEIR_OK)
        return true;
    weir_cli_fail();
    weir_mesh_shards_close(out);
    return false;
}

void weir_mesh_shards_close(weir_mesh_shards *shards)
{
    free(shards->shards);
    free(shards->memory);
    *shards = (weir_mesh_shards){ 0 };
}
