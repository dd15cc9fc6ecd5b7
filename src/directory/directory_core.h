/* SPDX-License-Identifier: Apache-2.0 */
/* directory_core.h - the directory's services over its store and its log, without a socket.
 *
 * Every method is one row of a table. What only looks is answered from the store, once all that was
 * in the log before it has been applied. What changes something goes into the log as it came, is
 * applied when it comes back, and answered then. What waits is parked (waits.h) and looked at again
 * whenever its model has changed, until its time is up. Every rule is the store's; methods
 * translate messages to the store's structs and back, and know no sockets.
 *
 * Threads    the rpc server's thread, or whoever calls when there is none.
 * Time       of records: the log's. This process' own clock only bounds waits.
 */
#ifndef WEIR_DIRECTORY_DIRECTORY_CORE_H
#define WEIR_DIRECTORY_DIRECTORY_CORE_H

#include "directory/directory_log.h"
#include "directory/progress.h"
#include "directory/store.h"
#include "directory/waits.h"
#include "rpc/rpc.h"

typedef struct weir_directory_core weir_directory_core;

/* ---- methods ---------------------------------------------------------------------------------*/

/* One call of a method. Strings in a response may point into the store: nothing changes before it
 * is packed. */
typedef struct weir_directory_call {
    weir_directory_core *core;
    const ProtobufCMessage *request;
    weir_arena *arena;    /* for the response */
    uint64_t salt;        /* of a record */
    const char *trace_id; /* of a record: that its call belongs to; "": none */
    uint64_t now_ms;      /* by the log's clock */
    bool is_last;         /* of a wait: its time is up, so it is answered with what there is */
    bool is_asked;        /* somebody waits for this answer here: else it is another directory's */
    const ProtobufCMessage *response;
    uint64_t again_ms; /* of a wait that says LATER: its time is up then at the latest, by the log's
                          clock; 0: it is not known */
    char *text;        /* WEIR_RPC_MESSAGE_TEXT bytes, why not */
} weir_directory_call;

typedef weir_rpc_code (*weir_directory_rule)(weir_directory_call *call);

/* Of `look`: what is waited for is there, and takes a record. */
#define WEIR_DIRECTORY_TAKE ((weir_rpc_code)101)

typedef enum weir_directory_kind {
    WEIR_DIRECTORY_LOCAL,  /* answered by `rule` at once: of this directory alone */
    WEIR_DIRECTORY_READ,   /* `rule` looks at the store */
    WEIR_DIRECTORY_CHANGE, /* `rule` is applied when the record comes back */
    WEIR_DIRECTORY_WAIT,   /* `look` looks at the store: OK, WEIR_RPC_LATER to wait, or TAKE, which
                              appends a record for `rule`; that may say LATER too */
} weir_directory_kind;

/* What a wait stands in line for, and for how long at most. */
typedef struct weir_directory_bound {
    const char *model;
    uint32_t timeout_ms;
} weir_directory_bound;

typedef struct weir_directory_method {
    const char *name; /* of its records: "RefitService.CreateWeightVersion" */
    const ProtobufCMessageDescriptor *input; /* no two methods have the same */
    weir_directory_kind kind;
    weir_directory_rule rule;
    weir_directory_rule check; /* what can be said of a request alone, before it goes into the log;
                                  NULL: nothing */
    weir_directory_rule look;
    weir_directory_bound (*bound)(const weir_directory_call *call);
} weir_directory_method;

extern const weir_directory_method weir_refit_methods[];
extern const size_t weir_n_refit_methods;
extern const weir_directory_method weir_source_methods[];
extern const size_t weir_n_source_methods;
extern const weir_directory_method weir_fleet_methods[];
extern const size_t weir_n_fleet_methods;

#define WEIR_DIRECTORY_SERVICES 4
#define WEIR_DIRECTORY_MOST_METHODS 32

/* ---- what was counted ------------------------------------------------------------------------*/

#define WEIR_DIRECTORY_CODES 17
#define WEIR_DIRECTORY_STATUSES 80 /* by -status */
#define WEIR_DIRECTORY_STOPS 32

typedef struct weir_directory_method_counts {
    const char *name; /* as of weir_directory_method */
    uint64_t by_code[WEIR_DIRECTORY_CODES];
    uint64_t refused[WEIR_DIRECTORY_CODES]; /* by the server before the method, too */
    uint64_t n_refused_replies;             /* of P2pService: success=false, which is no code */
    uint64_t n_ended_by_time;               /* of waits: answered with what there was */
} weir_directory_method_counts;

/* Time at one stop, as workers reported it. */
typedef struct weir_directory_stop_counts {
    char name[24];
    uint64_t n, sum_us;
} weir_directory_stop_counts;

/* Since this process began, of calls that this directory answered: those of several add up. */
typedef struct weir_directory_counts {
    weir_directory_method_counts methods[WEIR_DIRECTORY_MOST_METHODS];
    size_t n_methods;
    uint64_t refused_elsewhere[WEIR_DIRECTORY_CODES]; /* calls of methods that there are not */
    uint64_t n_records;                               /* applied, whoever appended them */
    weir_store_events events;                /* of these calls; leases expire by nobody's call */
    uint64_t n_granted_peers;                /* versions acquired from a replica */
    uint64_t words[WEIR_DIRECTORY_STATUSES]; /* of replicas, by -status: [0] installed */
    uint64_t n_installed_bytes;
    uint64_t n_retried; /* acquired with a version that was missed, or with sources to avoid */
    weir_directory_stop_counts stops[WEIR_DIRECTORY_STOPS];
    size_t n_stops;
} weir_directory_counts;

/* ---- the core --------------------------------------------------------------------------------*/

/* How it reaches the outside. */
typedef struct weir_directory_hooks {
    /* As weir_rpc_server_answer(). */
    bool (*answer)(void *context, uint64_t ticket, weir_rpc_code code,
                   const ProtobufCMessage *response, const char *text);
    /* weir_directory_core_tick() is wanted at this time of weir_now_ns(), no longer later. NULL:
     * whoever ticks looks at what the tick returned. */
    void (*arm)(void *context, uint64_t due_ns);
    void *context;
} weir_directory_hooks;

/* The call that a handler is in the middle of: it is answered by returning. */
typedef struct weir_directory_current {
    uint64_t ticket; /* 0: none */
    const ProtobufCMessage *request;
    weir_arena *arena;
    const char *trace_id; /* NULL: none */
    char *text;
    const ProtobufCMessage *response;
    weir_rpc_code code;
    bool is_answered;
} weir_directory_current;

/* The trainer that has the directory for itself. */
typedef struct weir_directory_group {
    char *model, *run; /* NULL: there is none */
    uint32_t n_workers;
} weir_directory_group;

struct weir_directory_core {
    weir_directory_group group;
    weir_store *store;
    weir_directory_log *log;
    weir_rpc_server *server; /* NULL: there is none */
    weir_directory_counts counts;
    weir_progress progress;
    weir_waits waits;
    uint64_t begun_ns;

    weir_store_options store_options;
    weir_directory_hooks hooks;
    unsigned sweep_ms;
    uint64_t salt; /* of the next record: random, then counted on */
    weir_directory_current current;
    weir_arena arena;                             /* of calls that no handler is in the middle of */
    bool has_changed;                             /* since waits were looked at */
    uint64_t look_ns, sweep_ns, log_ns, armed_ns; /* when each is due */
    bool is_warned_of_unknown;
    weir_rpc_method methods[WEIR_DIRECTORY_MOST_METHODS];
    weir_rpc_service services[WEIR_DIRECTORY_SERVICES];
};

typedef struct weir_directory_core_options {
    weir_store_options store;
    const char *group_model, *group_run; /* copied */
    uint32_t n_group_workers;
    unsigned sweep_every_ms; /* 0: 30,000; each second while calls wait */
    uint64_t salt;           /* random, or ids repeat */
    weir_directory_hooks hooks;
} weir_directory_core_options;

/* Everything but its log, whose opening loads the store: `core->log` is set by who opens it, with
 * weir_directory_core_reader(), and closed by the core. The core must not move from then on. */
weir_status weir_directory_core_open(const weir_directory_core_options *options,
                                     weir_directory_core *core);
weir_log_reader weir_directory_core_reader(weir_directory_core *core);
void weir_directory_core_close(weir_directory_core *core);

/* RefitService, P2pService, DirectoryService and HealthService: core->services. */
void weir_directory_core_make_services(weir_directory_core *core);
/* For weir_rpc_server_options.gone. */
void weir_directory_core_gone(void *core, uint64_t ticket);
/* For weir_rpc_server_options.refused. */
void weir_directory_core_refused(void *core, const ProtobufCMethodDescriptor *method,
                                 weir_rpc_code code);
/* Looks at waits whose models have changed or whose time is up, sweeps, lets the log look after
 * itself. Returns after how many milliseconds again, at least 1. */
unsigned weir_directory_core_tick(void *core);

/* Milliseconds since 1970 by the log's clock. */
uint64_t weir_directory_core_now_ms(const weir_directory_core *core);

/* The gRPC code of a refusal by the store; copies the recorded line to `text`. */
weir_rpc_code weir_directory_core_refuse(weir_status status, char *text);
weir_rpc_code weir_directory_core_invalid(weir_directory_call *call, const char *text);

#endif
