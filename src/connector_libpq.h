/*
 * connector_libpq.h
 *		Between connector_libpq.c (a connection's life) and connector_call.c
 *		(one call over it).
 */
#ifndef SAGA_CONNECTOR_LIBPQ_H
#define SAGA_CONNECTOR_LIBPQ_H

#include "postgres.h"

#include "libpq-fe.h"

#include "connector_internal.h"
#include "resolver.h"

#define SAGA_LINK_HOSTS			16
#define SAGA_LINK_ADDRESSES		32
#define SAGA_LINK_STATEMENTS	100 /* prepared ones kept on a connection */
#define SAGA_LINK_ITEMS			128 /* a branch of two-phase commit has most */

typedef enum SagaLinkState
{
	SAGA_LINK_RESOLVING,
	SAGA_LINK_CONNECTING,
	SAGA_LINK_SETUP,			/* attaching, preparing our own statements */
	SAGA_LINK_IDLE,
	SAGA_LINK_DESCRIBING,		/* preparing the call's: nothing happens yet */
	SAGA_LINK_RUNNING,			/* the call is out */
} SagaLinkState;

/* What the messages of one exchange are, in order; results come in it too. */
typedef enum SagaItem
{
	SAGA_ITEM_SYNC,
	SAGA_ITEM_OTHER,			/* whose success has nothing to tell */
	SAGA_ITEM_PARSE,
	SAGA_ITEM_DESCRIBE,
	SAGA_ITEM_RUN,
	SAGA_ITEM_COMMIT,
} SagaItem;

/* What the exchanges of COMMIT and ROLLBACK PREPARED are for, in order. */
typedef enum SagaBranchStage
{
	SAGA_STAGE_FENCE,			/* is our epoch the current one? */
	SAGA_STAGE_END,				/* the command */
	SAGA_STAGE_SETTLE,			/* what does the key say? */
} SagaBranchStage;

/* A statement of a template prepared on this connection. */
typedef struct SagaStatement
{
	uint64		hash;			/* of the template; also its name */
	uint64		last_used;
	bool		modifies;		/* INSERT, UPDATE, ... by its first word */
	bool		counted;		/* we added RETURNING, to count its rows */
	int			nfields;
	bool		is_void;
	char		column[NAMEDATALEN * 4];	/* the only one's name */
} SagaStatement;

typedef struct SagaLinkHost
{
	struct SagaPqLink *link;
	SagaResolve *resolve;
	char	   *name;
	char	   *port;			/* or NULL: the default */
	int			naddresses;
	char	   *addresses[SAGA_LINK_ADDRESSES];
} SagaLinkHost;

typedef struct SagaPqLink
{
	SagaLink	link;			/* first */
	SagaPollEntry poll;
	SagaTimer	timer;			/* to be connected, then idle */
	MemoryContext context;		/* holds this */
	PGconn	   *conn;
	SagaLinkState state;
	bool		fd_reserved;
	bool		prepared;		/* no pooler in between */
	int			statement_timeout_ms;	/* server's option, 0: none */
	int			session_timeout_ms; /* in force there */
	SagaTime	idle_since;
	char	   *epoch_args;		/* SQL literals */

	/* resolving */
	int			nhosts;
	int			unresolved;
	SagaLinkHost *hosts;
	char		resolve_fault[256];

	/* statements */
	int			nstatements;
	uint64		use_counter;
	bool		statements_lost;	/* forget all there is, prepare anew */
	SagaStatement statements[SAGA_LINK_STATEMENTS];

	/* the exchange under way */
	SagaItem	items[SAGA_LINK_ITEMS];
	int			nitems;
	int			current;
	bool		current_answered;
	int			nulls;			/* in a row: a guard against endless turns */
	uint64		received;
	bool		failed;			/* an error came, in call->answer or fault */
	bool		fatal;			/* ... with which the session ended */
	bool		lost;			/* the connection broke */
	bool		uncertain;		/* the error does not tell if it committed */
	char		sqlstate[6];
	SagaFault	fault;			/* when there is no call */
	bool		ran;			/* run() answered */
	bool		committed;		/* the tag was COMMIT */
	bool		rolled_back;	/* ROLLBACK was sent after an error */
	bool		no_transaction; /* ... of a transaction that was none */
	bool		counting;		/* DESCRIBING: RETURNING was added */
	SagaStatement described;
	int			part;			/* PREPARE: part that is described, or the
								 * number of those that have answered */
	SagaBranchStage stage;		/* COMMIT, ROLLBACK PREPARED */
} SagaPqLink;

#define SAGA_OLDEST_SERVER		120000

/* ---- connector_libpq.c ---- */

/* Also for participant.c, which connects in a session: why it failed, and
 * what must hold of a connection before anything is sent over it. */
extern void saga_connect_fault(PGconn *conn, SagaFault *fault);
extern bool saga_connection_allowed(PGconn *conn, const SagaServer *server,
									SagaFault *fault);

/* Queue messages.  A failure shows as a lost connection when flushed. */
extern void saga_link_begin_exchange(SagaPqLink *link, SagaLinkState state);
extern void saga_link_query(SagaPqLink *link, SagaItem item, const char *sql,
							int nparams, const char *const *values);
extern void saga_link_execute(SagaPqLink *link, SagaItem item,
							  const char *name, int nparams,
							  const char *const *values);
extern void saga_link_parse(SagaPqLink *link, SagaItem item, const char *name,
							const char *sql, int nparams, const Oid *types);
extern void saga_link_describe(SagaPqLink *link, const char *name);
extern void saga_link_sync(SagaPqLink *link);

/* Send what is queued.  The link may be gone after it. */
extern void saga_link_flush(SagaPqLink *link);

/* Our own statements of a session. */
extern void saga_link_parse_own(SagaPqLink *link);

/* End of a call that has its answer: the link is free, or gone. */
extern void saga_link_call_done(SagaPqLink *link);

/* The first error of an exchange. */
extern void saga_link_note_error(SagaPqLink *link, SagaItem item,
								 const PGresult *res);

/* ---- connector_text.c ---- */

/* Types a participant can be told by OID; the others it infers. */
extern Oid *saga_wire_types(const SagaTemplate *tmpl);

/* A type's name in SQL; "unknown" for those a participant infers. */
extern const char *saga_call_type_name(Oid type);

/* An array literal of texts and NULLs. */
extern char *saga_call_array_text(int n, char **values);
extern void saga_call_uuid_text(const pg_uuid_t *uuid, char *out);
extern void saga_call_time_text(TimestampTz t, char *out, size_t size);

/* ---- connector_call.c ---- */

/* Commands that may not be a step: COMMIT, DISCARD, ... */
extern bool saga_statement_is_refused(const char *sql);

/* One statement of a call: the call's own, or a part of it. */
typedef struct SagaPiece
{
	const char *step;
	const char *op;				/* of the barrier's key */
	const SagaTemplate *tmpl;
	char	  **values;
	SagaResultShape shape;
	int			expect_rows;
	int			timeout_ms;
	int			max_result;
} SagaPiece;

/* For connector_branch.c; they leave the exchange to be flushed by it. */
extern void saga_call_begin(SagaPqLink *link, int timeout_ms);
extern void saga_call_set_timeout(SagaPqLink *link, int timeout_ms);
extern void saga_call_run_piece(SagaPqLink *link, const SagaPiece *piece,
								const SagaStatement *statement);
extern void saga_call_claim(SagaPqLink *link, const SagaRequest *request,
							const char *op);
extern void saga_call_restore_statements(SagaPqLink *link);

/*
 * The statement as it is prepared on this connection; NULL: it is being
 * prepared (saga_call_described() comes next), or cannot be run as asked for
 * and the call is answered.
 */
extern SagaStatement *saga_call_statement(SagaPqLink *link,
										  const SagaPiece *piece);

/* 'D...' done now, 'P...' was done, 'R' refused, ...; NULL: not understood. */
extern const char *saga_call_answer_text(const PGresult *res);

/* Was it our own claim that waited in vain?  Then no attempt was made. */
extern bool saga_call_waited(const PGresult *res);
extern void saga_call_time_text(TimestampTz t, char *out, size_t size);

extern void saga_call_send(SagaPqLink *link);
extern void saga_call_result(SagaPqLink *link, SagaItem item,
							 const PGresult *res);
extern void saga_call_described(SagaPqLink *link);
extern void saga_call_ran(SagaPqLink *link);
extern void saga_call_lost(SagaPqLink *link, const char *why);

/* ---- connector_branch.c ---- */

/* Is it one of the modes of two-phase commit? */
extern bool saga_branch_is(const SagaConnCall *call);
extern void saga_branch_piece(const SagaConnCall *call, int part,
							  SagaPiece *piece);
extern void saga_branch_send(SagaPqLink *link);
extern void saga_branch_result(SagaPqLink *link, SagaItem item,
							   const PGresult *res);

/* All results are in; true: a further exchange is out, or the call is over. */
extern bool saga_branch_ran(SagaPqLink *link);

#endif							/* SAGA_CONNECTOR_LIBPQ_H */
