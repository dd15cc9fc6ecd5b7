/* SPDX-License-Identifier: Apache-2.0 */
/* yaml_tree.c - libyaml's events put together, with Weir's limits.
 *
 * The stack of open nodes is an array as deep as is allowed, so no input makes it recurse.
 */
#include "config/yaml_tree.h"

#include <string.h>
#include <yaml.h>

#include "base/error.h"

typedef struct open_node {
    weir_yaml_node *node;
    const weir_yaml_node **end; /* where its next child is hung */
    const char *key;            /* of a block: read, its value is yet to come */
    uint32_t key_line, key_column;
} open_node;

typedef struct builder {
    weir_arena *arena;
    weir_yaml_fault *fault;
    const weir_yaml_node *root;
    open_node stack[WEIR_YAML_MAX_DEPTH];
    size_t depth, n_nodes, n_documents;
    weir_status status; /* of memory; faults are no failure */
} builder;

/* ---- faults ----------------------------------------------------------------------------------*/

static void fault_at(builder *build, const yaml_mark_t *mark, const char *text, const char *hint)
{
    build->fault->line = (uint32_t)mark->line + 1;
    build->fault->column = (uint32_t)mark->column + 1;
    build->fault->text = text;
    build->fault->hint = hint;
}

static bool is_stopped(const builder *build)
{
    return build->status != WEIR_OK || build->fault->text != NULL;
}

/* ---- nodes -----------------------------------------------------------------------------------*/

static bool is_nothing(const char *text)
{
    static const char *const words[] = { "", "~", "null", "Null", "NULL" };
    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
        if (strcmp(text, words[i]) == 0)
            return true;
    return false;
}

static char *copy_scalar(builder *build, const yaml_event_t *event)
{
    const char *value = (const char *)event->data.scalar.value;
    size_t n_bytes = event->data.scalar.length;
    if (memchr(value, 0, n_bytes) != NULL) {
        fault_at(build, &event->start_mark, "a zero byte in a text", "take it out");
        return NULL;
    }
    char *text = weir_arena_alloc(build->arena, n_bytes + 1);
    if (text == NULL) {
        build->status = WEIR_ERR_NO_MEMORY;
        return NULL;
    }
    memcpy(text, value, n_bytes);
    text[n_bytes] = '\0';
    return text;
}

/* Hangs the node where the events are; a block's pending key becomes its key. */
static void hang(builder *build, weir_yaml_node *node)
{
    if (build->depth == 0) {
        build->root = node;
        return;
    }
    open_node *parent = &build->stack[build->depth - 1];
    node->key = parent->key;
    node->key_line = parent->key_line;
    node->key_column = parent->key_column;
    parent->key = NULL;
    *parent->end = node;
    parent->end = &node->next;
}

static weir_yaml_node *add_node(builder *build, const yaml_event_t *event, weir_yaml_kind kind)
{
    if (++build->n_nodes > WEIR_YAML_MAX_NODES) {
        fault_at(build, &event->start_mark, "more values than a configuration may have",
                 "at most 10,000 are taken");
        return NULL;
    }
    weir_yaml_node *node = weir_arena_zeroed(build->arena, 1, sizeof(*node));
    if (node == NULL) {
        build->status = WEIR_ERR_NO_MEMORY;
        return NULL;
    }
    node->kind = kind;
    node->line = (uint32_t)event->start_mark.line + 1;
    node->column = (uint32_t)event->start_mark.column + 1;
    hang(build, node);
    return node;
}

/* ---- events ----------------------------------------------------------------------------------*/

static bool wants_key(const builder *build)
{
    const open_node *parent = build->depth > 0 ? &build->stack[build->depth - 1] : NULL;
    return parent != NULL && parent->node->kind == WEIR_YAML_BLOCK && parent->key == NULL;
}

static void take_scalar(builder *build, const yaml_event_t *event)
{
    char *text = copy_scalar(build, event);
    if (text == NULL)
        return;
    if (wants_key(build)) {
        open_node *parent = &build->stack[build->depth - 1];
        parent->key = text;
        parent->key_line = (uint32_t)event->start_mark.line + 1;
        parent->key_column = (uint32_t)event->start_mark.column + 1;
        return;
    }
    bool plain = event->data.scalar.style == YAML_PLAIN_SCALAR_STYLE;
    weir_yaml_kind kind = plain && is_nothing(text) ? WEIR_YAML_NOTHING : WEIR_YAML_SCALAR;
    weir_yaml_node *node = add_node(build, event, kind);
    if (node == NULL)
        return;
    node->plain = plain;
    node->text = text;
}

static void open_children(builder *build, const yaml_event_t *event, weir_yaml_kind kind)
{
    if (wants_key(build)) {
        fault_at(build, &event->start_mark, "a key that is a list or a block", "keys are words");
        return;
    }
    if (build->depth == WEIR_YAML_MAX_DEPTH) {
        fault_at(build, &event->start_mark, "nested deeper than a configuration may be",
                 "at most 16 levels are taken");
        return;
    }
    weir_yaml_node *node = add_node(build, event, kind);
    if (node != NULL)
        build->stack[build->depth++] = (open_node){ .node = node, .end = &node->first };
}

static bool has_property(const yaml_event_t *event)
{
    switch (event->type) {
    case YAML_SCALAR_EVENT:
        return event->data.scalar.anchor != NULL || event->data.scalar.tag != NULL;
    case YAML_SEQUENCE_START_EVENT:
        return event->data.sequence_start.anchor != NULL || event->data.sequence_start.tag != NULL;
    case YAML_MAPPING_START_EVENT:
        return event->data.mapping_start.anchor != NULL || event->data.mapping_start.tag != NULL;
    default:
        return event->type == YAML_ALIAS_EVENT;
    }
}

static void take_event(builder *build, const yaml_event_t *event)
{
    if (has_property(event)) {
        fault_at(build, &event->start_mark, "an anchor, an alias or a tag",
                 "write the value itself");
        return;
    }
    if (event->type == YAML_DOCUMENT_START_EVENT && ++build->n_documents > 1)
        fault_at(build, &event->start_mark, "a second document",
                 "a file has one; take out the line ---");
    else if (event->type == YAML_SCALAR_EVENT)
        take_scalar(build, event);
    else if (event->type == YAML_SEQUENCE_START_EVENT)
        open_children(build, event, WEIR_YAML_LIST);
    else if (event->type == YAML_MAPPING_START_EVENT)
        open_children(build, event, WEIR_YAML_BLOCK);
    else if (event->type == YAML_SEQUENCE_END_EVENT || event->type == YAML_MAPPING_END_EVENT)
        build->depth--;
}

/* Bytes that are no text have no mark, only an offset. */
static yaml_mark_t mark_of_error(const yaml_parser_t *parser, const char *text, size_t n_bytes)
{
    yaml_mark_t mark = parser->problem_mark;
    if (parser->error != YAML_READER_ERROR)
        return mark;
    mark = (yaml_mark_t){ 0, 0, 0 };
    for (size_t i = 0; i < n_bytes && i < parser->problem_offset; i++) {
        mark.column = text[i] == '\n' ? 0 : mark.column + 1;
        mark.line += text[i] == '\n';
    }
    return mark;
}

static void take_parser_error(builder *build, const yaml_parser_t *parser, const yaml_mark_t *mark)
{
    if (parser->error == YAML_MEMORY_ERROR) {
        build->status = weir_fail(WEIR_ERR_NO_MEMORY, "out of memory for YAML");
        return;
    }
    char *text = parser->context != NULL
                     ? weir_arena_format(build->arena, "%s, %s", parser->context, parser->problem)
                     : weir_arena_strdup(build->arena, parser->problem);
    if (text == NULL)
        build->status = WEIR_ERR_NO_MEMORY;
    else
        fault_at(build, mark, text,
                 "this is no YAML: look at indents, colons and quotes here and just above");
}

weir_status weir_yaml_parse(const char *text, size_t n_bytes, weir_arena *arena,
                            const weir_yaml_node **out_root, weir_yaml_fault *fault)
{
    builder build = { .arena = arena, .fault = fault };
    *fault = (weir_yaml_fault){ .text = NULL };
    yaml_parser_t parser;
    if (!yaml_parser_initialize(&parser))
        return weir_fail(WEIR_ERR_NO_MEMORY, "out of memory for YAML");
    yaml_parser_set_input_string(&parser, (const unsigned char *)text, n_bytes);
    for (bool at_end = false; !at_end && !is_stopped(&build);) {
        yaml_event_t event;
        if (!yaml_parser_parse(&parser, &event)) {
            yaml_mark_t mark = mark_of_error(&parser, text, n_bytes);
            take_parser_error(&build, &parser, &mark);
            break;
        }
        at_end = event.type == YAML_STREAM_END_EVENT;
        take_event(&build, &event);
        yaml_event_delete(&event);
    }
    yaml_parser_delete(&parser);
    *out_root = is_stopped(&build) ? NULL : build.root;
    return build.status;
}
