/*
 * connector.h
 *		Calls to participants: the one interface every kind of participant is
 *		behind, and the one point where a coordinator waits.
 *
 * Used by the coordinator only (plus the wait point by the executor).  Nothing
 * here blocks, touches SPI or reads a table; nothing here decides what a saga
 * does next.  A request is copied on submit.  Every submitted request is
 * answered exactly once, through the callback, from inside saga_poll_wait().
 */
#ifndef SAGA_CONNECTOR_H
#define SAGA_CONNECTOR_H

#include "postgres.h"

#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "definition.h"
#include "machine.h"
#include "server.h"

/* ---- the wait point (poll.c) ---- */

#define SAGA_POLL_READ	1
#define SAGA_POLL_WRITE 2

typedef struct SagaPollEntry
{
	int			fd;
	uint32		events;			/* SAGA_POLL_... asked for */
	void		(*ready) (struct SagaPollEntry *entry, uint32 events);
} SagaPollEntry;

extern void saga_poll_init(void);
extern void saga_poll_add(SagaPollEntry *entry);	/* fd and events set */
extern void saga_poll_modify(SagaPollEntry *entry, uint32 events);
extern void saga_poll_remove(SagaPollEntry *entry); /* before the fd closes */

/* Without an error, for callbacks of libraries; saga_poll_init() was called. */
extern bool saga_poll_try_add(SagaPollEntry *entry);
extern bool saga_poll_try_modify(SagaPollEntry *entry, uint32 events);

/*
 * Wait for the latch, a descriptor, or the time-out (-1: none); dispatch what
 * is ready.  Returns true if the latch was set (it has been reset).  Exits the
 * process on postmaster death.
 */
extern bool saga_poll_wait(long timeout_ms, uint32 wait_event);

/*
 * Run at the start of every saga_poll_wait(); returns the longest it may then
 * sleep in ms, or -1.  The connector's timers and answers that need no socket
 * go this way, so its user need not care for them.
 */
extern void saga_poll_before_wait(long (*hook) (void));

/* ---- who calls: the fence at every participant ---- */

typedef struct SagaEpoch
{
	char		coordinator[64];	/* identity of this database, stable */
	int32		timeline;
	int64		counter;
	char		nonce[40];
} SagaEpoch;

/* ---- calls ---- */

typedef enum SagaRequestMode
{
	SAGA_REQUEST_RUN,			/* claim the key, run, record */
	SAGA_REQUEST_UNDO,			/* refuse the action's key first; run the
								 * compensation only if the action was done */
	SAGA_REQUEST_CLAIM,			/* done (with result) or now refused */
	SAGA_REQUEST_PURGE,			/* drop barrier rows that are past keeping */

	/* two-phase commit; connector_branch.c */
	SAGA_REQUEST_PREPARE,		/* claim the key, run all parts, PREPARE */
	SAGA_REQUEST_COMMIT_PREPARED,
	SAGA_REQUEST_ROLLBACK_PREPARED, /* ... and refuse the key */
	SAGA_REQUEST_LIST_PREPARED, /* result: a JSON array of [gid, age in s] */
} SagaRequestMode;

typedef struct SagaRequest
{
	uint64		tag;			/* the caller's, comes back in the answer; 0
								 * need not be unique, cannot be cancelled */
	SagaRequestMode mode;
	const SagaServer *server;	/* copied */
	pg_uuid_t	saga_id;
	const char *saga_name;		/* for application_name */
	const char *step;
	SagaOp		op;				/* whose key: ACTION or UNDO */
	const SagaTemplate *tmpl;	/* must outlive the answer (definitions do) */
	char	  **values;			/* tmpl->nparams texts or NULLs */
	SagaResultShape shape;
	int			expect_rows;
	int			timeout_ms;
	TimestampTz not_after;
	/* for services without a barrier */
	const char *idempotency_key;
	const char *correlation;	/* or NULL */
	const char *callback_token; /* or NULL */
	int			attempt;
	bool		at_most_once;	/* never sent twice, not even unseen */
	bool		callback;		/* may be accepted, to be answered later */

	/*
	 * Two-phase commit: tmpl has the parameters of all parts of 'call', step
	 * is the key of the branch, or NULL to COMMIT or ROLLBACK what belongs to
	 * no saga we run.
	 */
	const SagaCall *call;		/* PREPARE; must outlive the answer */
	const char *gid;			/* LIST: what the gids begin with */

	/* PURGE */
	TimestampTz purge_before;
	const char *purge_live;		/* uuid[] literal of sagas to be spared */
} SagaRequest;

typedef struct SagaAnswer
{
	uint64		tag;
	/* DONE, REFUSED, ACCEPTED, or an error: the caller classifies sqlstate */
	SagaAnswerKind kind;
	bool		has_sqlstate;	/* then 'kind' is only a first guess */
	char		sqlstate[6];
	const char *message;		/* of the participant; never a secret */
	const char *detail;
	const char *hint;
	const char *result;			/* JSON text, NULL = null */
	int			http_status;	/* 0: not over HTTP */
	bool		text_result;	/* ... result may be text that is no JSON */
	SagaTime	retry_after;	/* no further try before now + this */
	bool		ran;			/* UNDO: the compensation really ran */
	bool		free;			/* eats no attempt */
	int			part;			/* PREPARE: which part failed, from 1 */
	SagaTime	latency;		/* send to answer, 0 = never sent */
} SagaAnswer;

/*
 * Runs in a memory context that is reset after it: copy what is to be kept.
 * It may submit.  Never called from inside of submit or cancel.
 */
typedef void (*SagaAnswerCallback) (const SagaAnswer *answer, void *arg);

extern void saga_connector_init(const SagaEpoch *epoch, int max_result_bytes,
								SagaAnswerCallback callback, void *arg);
extern void saga_connector_submit(const SagaRequest *request);

/* End all connections (at exit, or when a server object changed). */
extern void saga_connector_close_all(void);
extern void saga_connector_server_changed(void);	/* idle ones reconnect */

#endif							/* SAGA_CONNECTOR_H */
