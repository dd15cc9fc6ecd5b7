/* SPDX-License-Identifier: Apache-2.0 */
/* run_values.c - what a file writes: each key to its row, each value to its member.
 *
 * What a plain word is goes by YAML: "8" is a number and "true" a boolean, in quotes both are
 * texts. So any reader that goes by the published schema sees what Weir sees.
 */
#include <ctype.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "config/run_state.h"

#define MAX_TEXT 4096u

/* ---- what is wrong with a value --------------------------------------------------------------*/

static void complain_of(weir_run_config *config, const weir_yaml_node *node,
                        const weir_run_row *row, const char *text, const char *hint)
{
    weir_run_complain_at(config, node->line, node->column, row->path, text, hint);
}

static const char *kind_of(const weir_yaml_node *node)
{
    return node->kind == WEIR_YAML_LIST    ? "a list"
           : node->kind == WEIR_YAML_BLOCK ? "a block"
                                           : "a word";
}

static bool is_word(weir_run_config *config, const weir_yaml_node *node, const weir_run_row *row,
                    const char *expected)
{
    if (node->kind == WEIR_YAML_SCALAR)
        return true;
    complain_of(config, node, row,
                weir_run_line(config, "expected %s, got %s", expected, kind_of(node)),
                weir_run_line(config, "write %s: VALUE on one line", weir_run_key_of(row->path)));
    return false;
}

/* Whether YAML takes a plain word for a number or a boolean. */
static bool is_typed(const char *text)
{
    static const char *const words[] = { "true", "false", "yes", "no", "on", "off" };
    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
        if (strcasecmp(text, words[i]) == 0)
            return true;
    if (!isdigit((unsigned char)text[strspn(text, "+-.")]))
        return false;
    char *end;
    (void)strtod(text, &end);
    return *end == '\0';
}

/* ---- one kind each ---------------------------------------------------------------------------*/

static bool takes_text(weir_run_config *config, const weir_yaml_node *node, const weir_run_row *row)
{
    if (!is_word(config, node, row, "a text"))
        return false;
    if (node->plain && is_typed(node->text))
        complain_of(config, node, row,
                    weir_run_line(config,
                                  "expected a text, but YAML reads %s as a value of its own",
                                  node->text),
                    weir_run_line(config, "put it in quotes: \"%s\"", node->text));
    else if (node->text[0] == '\0')
        complain_of(config, node, row, "is empty", "write a text, or leave the key out");
    else if (strlen(node->text) > MAX_TEXT)
        complain_of(config, node, row, "is longer than 4096 bytes", "write less");
    else if (strpbrk(node->text, "\a\b\t\n\v\f\r\033\177") != NULL)
        complain_of(config, node, row, "has a line break or another control character",
                    "write it on one line");
    else
        return true;
    return false;
}

static bool takes_integer(weir_run_config *config, const weir_yaml_node *node,
                          const weir_run_row *row)
{
    if (!is_word(config, node, row, "a number"))
        return false;
    const char *hint =
        weir_run_line(config, "write a whole number from %u to %u", row->least, row->most);
    size_t n_digits = strspn(node->text, "0123456789");
    bool is_number = node->plain && n_digits > 0 && node->text[n_digits] == '\0' &&
                     (node->text[0] != '0' || n_digits == 1);
    if (is_number && n_digits <= 10) {
        unsigned long long value = strtoull(node->text, NULL, 10);
        if (value >= row->least && value <= row->most)
            return true;
    }
    complain_of(config, node, row,
                is_number ? weir_run_line(config, "%s is out of range", node->text)
                          : weir_run_line(config, "expected a whole number, got %s%s%s",
                                          node->plain ? "" : "the text '", node->text,
                                          node->plain ? "" : "'"),
                hint);
    return false;
}

static bool is_true(const char *text)
{
    return strcmp(text, "true") == 0 || strcmp(text, "True") == 0 || strcmp(text, "TRUE") == 0;
}

static bool takes_boolean(weir_run_config *config, const weir_yaml_node *node,
                          const weir_run_row *row)
{
    if (!is_word(config, node, row, "true or false"))
        return false;
    if (node->plain && (is_true(node->text) || strcmp(node->text, "false") == 0 ||
                        strcmp(node->text, "False") == 0 || strcmp(node->text, "FALSE") == 0))
        return true;
    complain_of(config, node, row,
                weir_run_line(config, "expected true or false, got %s%s%s",
                              node->plain ? "" : "the text '", node->text, node->plain ? "" : "'"),
                "write true or false, without quotes");
    return false;
}

/* "filesystem|nccl" as "filesystem or nccl". */
static const char *choices_line(weir_run_config *config, const weir_run_row *row)
{
    char line[256];
    size_t n = 0;
    for (const char *at = row->choices; *at != '\0' && n + 5 < sizeof(line); at++) {
        if (*at != '|') {
            line[n++] = *at;
            continue;
        }
        const char *joint = strchr(at + 1, '|') != NULL ? ", " : " or ";
        memcpy(line + n, joint, strlen(joint));
        n += strlen(joint);
    }
    line[n] = '\0';
    return weir_run_line(config, "write %s", line);
}

static bool takes_choice(weir_run_config *config, const weir_yaml_node *node,
                         const weir_run_row *row)
{
    if (!is_word(config, node, row, "one of some words"))
        return false;
    if (weir_run_choice_of(row->choices, node->text) >= 0)
        return true;
    complain_of(config, node, row, weir_run_line(config, "'%s' is none of its values", node->text),
                choices_line(config, row));
    return false;
}

/* A server's address without what may be left out before it. */
static const char *host_of(const char *text)
{
    static const char *const schemes[] = { "http://", "https://" };
    for (size_t i = 0; i < 2; i++) {
        size_t n = strlen(schemes[i]);
        if (strncmp(text, schemes[i], n) == 0)
            return text + n;
    }
    return text;
}

static bool is_same_server(const char *a, const char *b)
{
    size_t n_a = strcspn(host_of(a), "/");
    return n_a == strcspn(host_of(b), "/") && strncasecmp(host_of(a), host_of(b), n_a) == 0;
}

/* Letters, digits and what host names and addresses have besides; a port behind. */
static bool is_server(const char *text)
{
    const char *host = host_of(text);
    const char *colon = strrchr(host, ':');
    if (colon == NULL || colon == host)
        return false;
    bool is_bracketed = host[0] == '[' && colon[-1] == ']';
    const char *others = is_bracketed ? "[]:.%" : ".-_";
    for (const char *at = host; at < colon; at++)
        if (!isalnum((unsigned char)*at) && strchr(others, *at) == NULL)
            return false;
    size_t n_digits = strspn(colon + 1, "0123456789");
    size_t n_slashes = colon[1 + n_digits] == '/';
    if (n_digits == 0 || n_digits > 5 || colon[1 + n_digits + n_slashes] != '\0')
        return false;
    long port = strtol(colon + 1, NULL, 10);
    return port >= 1 && port <= 65535;
}

static bool takes_server(weir_run_config *config, const weir_yaml_node *list,
                         const weir_yaml_node *item, const weir_run_row *row)
{
    if (!takes_text(config, item, row))
        return false;
    if (!is_server(item->text)) {
        complain_of(config, item, row,
                    weir_run_line(config, "'%s' is no address of a server", item->text),
                    "write http://HOST:PORT or https://HOST:PORT");
        return false;
    }
    for (const weir_yaml_node *other = list->first; other != item; other = other->next)
        if (other->kind == WEIR_YAML_SCALAR && is_same_server(other->text, item->text)) {
            complain_of(config, item, row,
                        weir_run_line(config, "'%s' is there twice, first on line %u", item->text,
                                      other->line),
                        "take one of them out");
            return false;
        }
    return true;
}

static bool takes_list(weir_run_config *config, const weir_yaml_node *node, const weir_run_row *row)
{
    if (node->kind != WEIR_YAML_LIST || node->first == NULL) {
        complain_of(config, node, row,
                    node->kind == WEIR_YAML_LIST ? "is empty" : "expected a list",
                    weir_run_line(config, "write %s: [%s]", weir_run_key_of(row->path),
                                  row->default_value));
        return false;
    }
    size_t n_items = 0;
    bool fits = true;
    for (const weir_yaml_node *item = node->first; item != NULL; item = item->next, n_items++)
        if (n_items < WEIR_RUN_MAX_ITEMS)
            fits = takes_server(config, node, item, row) && fits;
    if (n_items <= WEIR_RUN_MAX_ITEMS)
        return fits;
    complain_of(config, node, row, weir_run_line(config, "has %zu items", n_items),
                weir_run_line(config, "at most %u are taken", WEIR_RUN_MAX_ITEMS));
    return false;
}

/* ---- members ---------------------------------------------------------------------------------*/

static void store_list(weir_run_config *config, const weir_run_row *row, const char *text,
                       const weir_yaml_node *first)
{
    weir_run_texts *texts = weir_run_member(config, row);
    size_t n_items = first == NULL;
    for (const weir_yaml_node *item = first; item != NULL; item = item->next)
        n_items++;
    const char **items = weir_arena_zeroed(&config->arena, n_items, sizeof(*items));
    if (items == NULL) {
        config->out_of_memory = true;
        return;
    }
    items[0] = text;
    size_t i = 0;
    for (const weir_yaml_node *item = first; item != NULL; item = item->next)
        items[i++] = item->text;
    *texts = (weir_run_texts){ items, n_items };
}

void weir_run_store(weir_run_config *config, const weir_run_row *row, const char *text)
{
    _Static_assert(sizeof(weir_run_type) == sizeof(int), "choices are written as int");
    void *member = weir_run_member(config, row);
    switch (row->kind) {
    case WEIR_RUN_TEXT:
        *(const char **)member = text;
        break;
    case WEIR_RUN_LIST:
        store_list(config, row, text, NULL);
        break;
    case WEIR_RUN_INTEGER:
        *(uint32_t *)member = (uint32_t)strtoul(text, NULL, 10);
        break;
    case WEIR_RUN_BOOLEAN:
        *(bool *)member = is_true(text);
        break;
    case WEIR_RUN_CHOICE:
        *(int *)member = weir_run_choice_of(row->choices, text);
        break;
    case WEIR_RUN_BLOCK:
        break;
    }
}

static const char *choice_text(weir_run_config *config, const weir_run_row *row, int index)
{
    const char *choice = row->choices;
    while (index-- > 0)
        choice += strcspn(choice, "|") + 1;
    return weir_run_line(config, "%.*s", (int)strcspn(choice, "|"), choice);
}

const char *weir_run_text_of(weir_run_config *config, const weir_run_row *row)
{
    const void *member = weir_run_member(config, row);
    switch (row->kind) {
    case WEIR_RUN_TEXT:
        return *(const char *const *)member;
    case WEIR_RUN_LIST:
        return ((const weir_run_texts *)member)->items[0];
    case WEIR_RUN_INTEGER:
        return weir_run_line(config, "%u", *(const uint32_t *)member);
    case WEIR_RUN_BOOLEAN:
        return *(const bool *)member ? "true" : "false";
    case WEIR_RUN_CHOICE:
        return choice_text(config, row, *(const int *)member);
    case WEIR_RUN_BLOCK:
        break;
    }
    return NULL;
}

/* ---- the walk --------------------------------------------------------------------------------*/

static void take_block(weir_run_config *config, const weir_yaml_node *node, const char *path);

/* A field, or a block with all that could have been in it. */
static void refuse(weir_run_config *config, const char *path)
{
    size_t n_rows, n_path = strlen(path);
    const weir_run_row *rows = weir_run_rows(&n_rows);
    for (size_t i = 0; i < n_rows; i++) {
        char after = rows[i].path[strncmp(rows[i].path, path, n_path) == 0 ? n_path : 0];
        if (n_path == 0 || after == '.' || strcmp(rows[i].path, path) == 0)
            config->states[i].refused = true;
    }
}

static bool takes(weir_run_config *config, const weir_yaml_node *node, const weir_run_row *row)
{
    switch (row->kind) {
    case WEIR_RUN_TEXT:
        return takes_text(config, node, row);
    case WEIR_RUN_LIST:
        return takes_list(config, node, row);
    case WEIR_RUN_INTEGER:
        return takes_integer(config, node, row);
    case WEIR_RUN_BOOLEAN:
        return takes_boolean(config, node, row);
    case WEIR_RUN_CHOICE:
        return takes_choice(config, node, row);
    case WEIR_RUN_BLOCK:
        break;
    }
    return false;
}

static void take_value(weir_run_config *config, const weir_yaml_node *node, const weir_run_row *row)
{
    weir_run_state *state = weir_run_state_of(config, row->path);
    if (state->node != NULL) {
        weir_run_complain_at(
            config, node->key_line, node->key_column, row->path,
            weir_run_line(config, "is there twice, first on line %u", state->node->key_line),
            "take one of them out");
        state->refused = true;
        return;
    }
    state->node = node;
    state->origin = row;
    state->written = true;
    if (node->kind == WEIR_YAML_NOTHING) {
        refuse(config, row->path);
        weir_run_complain_at(config, node->key_line, node->key_column, row->path, "has no value",
                             "write one, or take the key out");
    } else if (row->kind == WEIR_RUN_BLOCK) {
        if (row->has_member)
            *(bool *)weir_run_member(config, row) = true;
        take_block(config, node, row->path);
    } else if (!takes(config, node, row)) {
        state->refused = true;
    } else if (row->kind == WEIR_RUN_LIST) {
        store_list(config, row, NULL, node->first);
    } else {
        weir_run_store(config, row, node->text);
    }
}

static void complain_of_key(weir_run_config *config, const weir_yaml_node *node, const char *block,
                            const char *path)
{
    const weir_run_row *nearest = weir_run_nearest(block, node->key);
    weir_run_complain_at(config, node->key_line, node->key_column,
                         weir_run_line(config, "%s", path), "is no field",
                         weir_run_line(config, "the nearest that is known is %s", nearest->path));
}

static void take_block(weir_run_config *config, const weir_yaml_node *node, const char *path)
{
    if (node->kind != WEIR_YAML_BLOCK) {
        refuse(config, path);
        weir_run_complain_at(
            config, node->line, node->column, path,
            weir_run_line(config, "expected a block of fields, got %s", kind_of(node)),
            "write its fields below, each as KEY: VALUE");
        return;
    }
    for (const weir_yaml_node *child = node->first; child != NULL; child = child->next) {
        const char *own = weir_arena_format(&config->arena, "%s%s%s", path,
                                            path[0] != '\0' ? "." : "", child->key);
        if (own == NULL) {
            config->out_of_memory = true;
            return;
        }
        const weir_run_row *row = strchr(child->key, '.') == NULL ? weir_run_row_of(own) : NULL;
        if (row != NULL)
            take_value(config, child, row);
        else
            complain_of_key(config, child, path, own);
    }
}

void weir_run_take_values(weir_run_config *config, const weir_yaml_node *root)
{
    if (root == NULL || root->kind == WEIR_YAML_NOTHING)
        return;
    take_block(config, root, "");
}
