/* SPDX-License-Identifier: Apache-2.0 */
/* run_schema.c - the rows of the run configuration, and looking them up.
 *
 * A new field is a member in run_config.h, a row here, and a line in CHANGELOG.md and
 * docs/run-config.md, as scripts/check-changelog and the tests ask for.
 */
#include "config/run_schema.h"

#include <string.h>

#define AT(member) .has_member = true, .offset = offsetof(weir_run_settings, member)
#define MAX_KEY 64u

static const weir_run_row rows[] = {
    { "run", WEIR_RUN_TEXT, AT(run), .default_value = "default",
      .help = "tells apart training runs of one model" },
    { "output_dir", WEIR_RUN_TEXT, AT(output_dir), .default_value = "outputs",
      .help = "the directory of what the run writes" },
    { "max_steps", WEIR_RUN_INTEGER, AT(max_steps), .default_value = "0", .most = 1000000000,
      .help = "training steps; 0: no end" },
    { "max_async_level", WEIR_RUN_INTEGER, AT(max_async_level), .default_value = "1", .most = 1000,
      .help = "how many steps generation may be behind; a broadcast needs 1" },

    { "model", WEIR_RUN_BLOCK, .help = "the model, for all parts that name none of their own" },
    { "model.name", WEIR_RUN_TEXT, AT(model.name),
      .help = "the model's name, as Hugging Face has it" },
    { "model.path", WEIR_RUN_TEXT, AT(model.path),
      .help = "a local directory with its checkpoint" },

    { "deployment", WEIR_RUN_BLOCK, .help = "machines and GPUs" },
    { "deployment.type", WEIR_RUN_CHOICE, AT(deployment.type), .default_value = "single_node",
      .choices = "single_node|multi_node", .help = "whether one machine runs all of it" },
    { "deployment.num_train_gpus", WEIR_RUN_INTEGER, AT(deployment.num_train_gpus),
      .default_value = "1", .most = 65536, .help = "single_node: GPUs of the trainer" },
    { "deployment.num_infer_gpus", WEIR_RUN_INTEGER, AT(deployment.num_infer_gpus),
      .default_value = "1", .most = 65536, .help = "single_node: GPUs of all inference servers" },
    { "deployment.gpus_per_node", WEIR_RUN_INTEGER, AT(deployment.gpus_per_node),
      .default_value = "8", .least = 1, .most = 1024, .help = "multi_node: GPUs of each machine" },
    { "deployment.num_infer_nodes", WEIR_RUN_INTEGER, AT(deployment.num_infer_nodes),
      .default_value = "1", .least = 1, .most = 65536,
      .help = "multi_node: machines with inference servers" },

    { "weight_broadcast", WEIR_RUN_BLOCK, AT(broadcast.present),
      .help = "how weights come from the trainer to the servers, for all parts" },
    { "weight_broadcast.type", WEIR_RUN_CHOICE, AT(broadcast.type), .default_value = "filesystem",
      .choices = "filesystem|nccl", .help = "through files, or by a broadcast" },
    { "weight_broadcast.transport", WEIR_RUN_CHOICE, AT(broadcast.transport),
      .default_value = "auto", .choices = "nccl|ucx|cuda_ipc|auto",
      .help = "what carries a broadcast; auto: NCCL or CUDA IPC between GPUs, UCX without them" },
    { "weight_broadcast.port", WEIR_RUN_INTEGER, AT(broadcast.port), .default_value = "29501",
      .least = 1, .most = 65535, .help = "where the trainer's first rank meets the others" },
    { "weight_broadcast.timeout", WEIR_RUN_INTEGER, AT(broadcast.timeout_s),
      .default_value = "1200", .least = 1, .most = 86400, .help = "seconds; bounds every wait" },
    { "weight_broadcast.quantize_in_weight_transfer", WEIR_RUN_BOOLEAN,
      AT(broadcast.quantize_in_weight_transfer), .default_value = "false",
      .help = "kernel format on the wire instead of the checkpoint's bf16" },
    { "weight_broadcast.marker_dir", WEIR_RUN_TEXT, AT(broadcast.marker_dir),
      .help = "directory whose step_N have the markers STABLE and NCCL_READY; none: no "
              "markers" },

    { "inference", WEIR_RUN_BLOCK, AT(inference.present), .help = "the inference servers" },
    { "inference.model", WEIR_RUN_BLOCK, .help = "what they start from" },
    { "inference.model.name", WEIR_RUN_TEXT, AT(inference.model.name), .from = "model.name",
      .help = "may be another than the trainer's: its FP8 checkpoint" },
    { "inference.model.path", WEIR_RUN_TEXT, AT(inference.model.path),
      .help = "a local directory with its checkpoint or its config.json alone" },
    { "inference.tp", WEIR_RUN_INTEGER, AT(inference.tp), .default_value = "1", .least = 1,
      .most = 1024, .help = "tensor parallelism of each server" },
    { "inference.dp", WEIR_RUN_INTEGER, AT(inference.dp), .default_value = "1", .least = 1,
      .most = 1024, .help = "data parallelism of each server" },
    { "inference.ep", WEIR_RUN_INTEGER, AT(inference.ep), .default_value = "1", .least = 1,
      .most = 1024,
      .help = "expert parallelism of each server; above 1 its tp * dp workers are one engine" },
    { "inference.experts", WEIR_RUN_TEXT, AT(inference.experts),
      .help = "JSON, \"[[0,1],[2,3]]\": the expert ids of each of its ep ranks; none: contiguous" },
    { "inference.conversion", WEIR_RUN_TEXT, AT(inference.conversion), .default_value = "auto",
      .help = "kernel format of the weights, as `weir formats` lists them; auto: by the "
              "quantization_config of the inference model" },
    { "inference.layout", WEIR_RUN_TEXT, AT(inference.layout),
      .help = "the engine's layout, as `weir families` lists them; none: the family's default" },
    { "inference.weight_broadcast", WEIR_RUN_BLOCK, .help = "the servers' part of it" },
    { "inference.weight_broadcast.type", WEIR_RUN_CHOICE, AT(inference.broadcast.type),
      .default_value = "filesystem", .from = "weight_broadcast.type", .choices = "filesystem|nccl",
      .help = "as the shared one" },
    { "inference.weight_broadcast.transport", WEIR_RUN_CHOICE, AT(inference.broadcast.transport),
      .default_value = "auto", .from = "weight_broadcast.transport",
      .choices = "nccl|ucx|cuda_ipc|auto", .help = "as the shared one" },

    { "trainer", WEIR_RUN_BLOCK, .help = "the trainer" },
    { "trainer.model", WEIR_RUN_BLOCK, .help = "what it trains" },
    { "trainer.model.name", WEIR_RUN_TEXT, AT(trainer.model.name), .from = "model.name",
      .help = "the trainer's model" },
    { "trainer.model.path", WEIR_RUN_TEXT, AT(trainer.model.path), .from = "model.path",
      .help = "a local directory with its bf16 checkpoint" },
    { "trainer.model.impl", WEIR_RUN_CHOICE, AT(trainer.impl), .default_value = "hf",
      .choices = "hf|liger_kernel|custom|auto",
      .help = "how the framework builds it; kernel format needs custom" },
    { "trainer.model.lora", WEIR_RUN_BLOCK, AT(trainer.lora.present),
      .help = "trains low-rank adapters instead of the weights" },
    { "trainer.model.lora.rank", WEIR_RUN_INTEGER, AT(trainer.lora.rank), .default_value = "16",
      .least = 1, .most = 65536, .help = "rank of the adapters" },
    { "trainer.model.lora.alpha", WEIR_RUN_INTEGER, AT(trainer.lora.alpha), .default_value = "32",
      .least = 1, .most = 65536, .help = "their scale, times rank" },
    { "trainer.max_async_level", WEIR_RUN_INTEGER, AT(trainer.max_async_level),
      .default_value = "1", .from = "max_async_level", .most = 1000, .help = "as the shared one" },
    { "trainer.weight_broadcast", WEIR_RUN_BLOCK, .help = "the trainer's part of it" },
    { "trainer.weight_broadcast.type", WEIR_RUN_CHOICE, AT(trainer.broadcast.type),
      .default_value = "filesystem", .from = "weight_broadcast.type", .choices = "filesystem|nccl",
      .help = "as the shared one" },
    { "trainer.weight_broadcast.transport", WEIR_RUN_CHOICE, AT(trainer.broadcast.transport),
      .default_value = "auto", .from = "weight_broadcast.transport",
      .choices = "nccl|ucx|cuda_ipc|auto", .help = "as the shared one" },
    { "trainer.weight_broadcast.host", WEIR_RUN_TEXT, AT(trainer.broadcast.host),
      .default_value = "localhost",
      .help = "the address it listens at; multi_node: 0.0.0.0 where none is written" },
    { "trainer.weight_broadcast.port", WEIR_RUN_INTEGER, AT(trainer.broadcast.port),
      .default_value = "29501", .from = "weight_broadcast.port", .least = 1, .most = 65535,
      .help = "as the shared one" },
    { "trainer.weight_broadcast.timeout", WEIR_RUN_INTEGER, AT(trainer.broadcast.timeout_s),
      .default_value = "1200", .from = "weight_broadcast.timeout", .least = 1, .most = 86400,
      .help = "as the shared one" },
    { "trainer.weight_broadcast.inference_world_size", WEIR_RUN_INTEGER,
      AT(trainer.broadcast.inference_world_size), .default_value = "1", .least = 1,
      .most = 1073741824,
      .help = "workers of all servers; where none is written: servers * tp * dp, multi_node "
              "gpus_per_node * num_infer_nodes" },
    { "trainer.weight_broadcast.window_bytes", WEIR_RUN_INTEGER, AT(trainer.broadcast.window_bytes),
      .default_value = "0", .most = UINT32_MAX,
      .help = "memory of each trainer rank that a version passes through while it is converted; "
              "0: 192 MiB where it is broadcast (512 MiB of a GPU), room for all of it where it is read" },
    { "trainer.weight_broadcast.quantize_in_weight_transfer", WEIR_RUN_BOOLEAN,
      AT(trainer.broadcast.quantize_in_weight_transfer), .default_value = "false",
      .from = "weight_broadcast.quantize_in_weight_transfer", .help = "as the shared one" },
    { "trainer.weight_broadcast.marker_dir", WEIR_RUN_TEXT, AT(trainer.broadcast.marker_dir),
      .from = "weight_broadcast.marker_dir", .help = "as the shared one" },

    { "orchestrator", WEIR_RUN_BLOCK, .help = "the orchestrator" },
    { "orchestrator.model", WEIR_RUN_BLOCK, .help = "what it asks the servers for" },
    { "orchestrator.model.name", WEIR_RUN_TEXT, AT(orchestrator.model.name),
      .from = "inference.model.name|model.name", .help = "the servers' model" },
    { "orchestrator.servers", WEIR_RUN_LIST, AT(orchestrator.servers),
      .default_value = "http://localhost:8000",
      .help = "http://HOST:PORT, or https://, of each server" },
    { "orchestrator.server_policy", WEIR_RUN_CHOICE, AT(orchestrator.server_policy),
      .default_value = "abort", .choices = "abort|drop|wait",
      .help = "a server is slow or dead: abort keeps the old version everywhere, drop goes on "
              "without it, wait gives it until the time-out" },
    { "orchestrator.max_async_level", WEIR_RUN_INTEGER, AT(orchestrator.max_async_level),
      .default_value = "1", .from = "max_async_level", .most = 1000, .help = "as the shared one" },
    { "orchestrator.weight_broadcast", WEIR_RUN_BLOCK, .help = "the orchestrator's part of it" },
    { "orchestrator.weight_broadcast.type", WEIR_RUN_CHOICE, AT(orchestrator.broadcast.type),
      .default_value = "filesystem", .from = "weight_broadcast.type", .choices = "filesystem|nccl",
      .help = "as the shared one" },
    { "orchestrator.weight_broadcast.host", WEIR_RUN_TEXT, AT(orchestrator.broadcast.host),
      .default_value = "localhost", .help = "where servers find the trainer" },
    { "orchestrator.weight_broadcast.port", WEIR_RUN_INTEGER, AT(orchestrator.broadcast.port),
      .default_value = "29501", .from = "weight_broadcast.port", .least = 1, .most = 65535,
      .help = "as the shared one" },
    { "orchestrator.weight_broadcast.timeout", WEIR_RUN_INTEGER,
      AT(orchestrator.broadcast.timeout_s), .default_value = "1200",
      .from = "weight_broadcast.timeout", .least = 1, .most = 86400, .help = "as the shared one" },
    { "orchestrator.weight_broadcast.quantize_in_weight_transfer", WEIR_RUN_BOOLEAN,
      AT(orchestrator.broadcast.quantize_in_weight_transfer), .default_value = "false",
      .from = "weight_broadcast.quantize_in_weight_transfer", .help = "as the shared one" },
    { "orchestrator.weight_broadcast.marker_dir", WEIR_RUN_TEXT,
      AT(orchestrator.broadcast.marker_dir), .from = "weight_broadcast.marker_dir",
      .help = "as the shared one" },
};
#define N_ROWS (sizeof(rows) / sizeof(rows[0]))
_Static_assert(N_ROWS <= WEIR_RUN_MAX_ROWS, "weir_run_config has a value for each row");

const weir_run_row *weir_run_rows(size_t *out_n_rows)
{
    *out_n_rows = N_ROWS;
    return rows;
}

const weir_run_row *weir_run_row_of_bytes(const char *path, size_t n_bytes)
{
    for (size_t i = 0; i < N_ROWS; i++)
        if (strncmp(rows[i].path, path, n_bytes) == 0 && rows[i].path[n_bytes] == '\0')
            return &rows[i];
    return NULL;
}

const weir_run_row *weir_run_row_of(const char *path)
{
    return weir_run_row_of_bytes(path, strlen(path));
}

const char *weir_run_key_of(const char *path)
{
    const char *dot = strrchr(path, '.');
    return dot != NULL ? dot + 1 : path;
}

int weir_run_choice_of(const char *choices, const char *word)
{
    size_t n_bytes = strlen(word);
    int index = 0;
    for (const char *choice = choices; n_bytes > 0; index++) {
        size_t n_choice = strcspn(choice, "|");
        if (n_choice == n_bytes && memcmp(choice, word, n_bytes) == 0)
            return index;
        if (choice[n_choice] == '\0')
            return -1;
        choice += n_choice + 1;
    }
    return -1;
}

/* ---- nearest key -----------------------------------------------------------------------------*/

size_t weir_run_distance(const char *a, const char *b)
{
    size_t n_a = strlen(a), n_b = strlen(b), row[MAX_KEY + 1];
    if (n_a > MAX_KEY || n_b > MAX_KEY)
        return n_a > n_b ? n_a : n_b;
    for (size_t k = 0; k <= n_b; k++)
        row[k] = k;
    for (size_t i = 1; i <= n_a; i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t k = 1; k <= n_b; k++) {
            size_t change = diagonal + (a[i - 1] != b[k - 1]);
            diagonal = row[k];
            size_t less = row[k] < row[k - 1] ? row[k] + 1 : row[k - 1] + 1;
            row[k] = less < change ? less : change;
        }
    }
    return row[n_b];
}

/* From any words of `whole` that stand side by side to `part`: "server_policy" has "policy". */
static size_t distance_of_words(const char *whole, const char *part)
{
    char words[MAX_KEY + 1];
    size_t n_whole = strlen(whole), least = n_whole;
    for (size_t first = 0; first < n_whole && n_whole <= MAX_KEY; first++) {
        if (first > 0 && whole[first - 1] != '_')
            continue;
        for (size_t end = first + 1; end <= n_whole; end++) {
            if (whole[end] != '_' && whole[end] != '\0')
                continue;
            memcpy(words, whole + first, end - first);
            words[end - first] = '\0';
            size_t distance = weir_run_distance(words, part);
            least = distance < least ? distance : least;
        }
    }
    return least;
}

/* A part of a key is nearer to the whole one than another key of the same length. */
static size_t distance_of(const char *own, const char *key)
{
    size_t n_own = strlen(own), n_key = strlen(key), n_both = n_own < n_key ? n_own : n_key;
    size_t distance = weir_run_distance(own, key);
    if (n_own == n_key || n_both < 3)
        return distance;
    if (strncmp(own, key, n_both) == 0)
        return 1;
    size_t part = n_own > n_key ? distance_of_words(own, key) : distance_of_words(key, own);
    return part * 3 <= n_both && part + 1 < distance ? part + 1 : distance;
}

/* What others call some of them. */
static const char *own_name_of(const char *key)
{
    static const char *const names[][2] = {
        { "tensor_parallel", "tp" }, { "tensor_parallel_size", "tp" },
        { "data_parallel", "dp" },   { "data_parallel_size", "dp" },
        { "expert_parallel", "ep" }, { "expert_parallel_size", "ep" },
    };
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (strcmp(names[i][0], key) == 0)
            return names[i][1];
    return key;
}

static bool lies_in(const weir_run_row *row, const char *block)
{
    size_t n_bytes = strlen(block);
    if (n_bytes == 0)
        return strchr(row->path, '.') == NULL;
    return strncmp(row->path, block, n_bytes) == 0 && row->path[n_bytes] == '.' &&
           strchr(row->path + n_bytes + 1, '.') == NULL;
}

const weir_run_row *weir_run_nearest(const char *path, const char *key)
{
    const weir_run_row *nearest = NULL, *elsewhere = NULL;
    size_t least = SIZE_MAX, n_path = strlen(path);
    key = own_name_of(key);
    for (size_t i = 0; i < N_ROWS; i++) {
        const char *own = weir_run_key_of(rows[i].path);
        size_t distance = distance_of(own, key);
        if (lies_in(&rows[i], path) && distance < least) {
            least = distance;
            nearest = &rows[i];
        }
        bool is_below = strncmp(rows[i].path, path, n_path) == 0;
        if (distance == 0 && (elsewhere == NULL || (is_below && n_path > 0)))
            elsewhere = &rows[i];
    }
    bool is_typo = least <= 1 || least * 3 <= strlen(key);
    return !is_typo && elsewhere != NULL ? elsewhere : nearest;
}
