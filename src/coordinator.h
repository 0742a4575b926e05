/*
 * coordinator.h
 *		Private to the coordinator: its sagas in memory (runs.c), its calls to
 *		executors (dispatch.c), its loop (coordinator.c).
 */
#ifndef SAGA_COORDINATOR_H
#define SAGA_COORDINATOR_H

#include "postgres.h"

#include "access/xlogdefs.h"
#include "lib/ilist.h"

#include "connector.h"
#include "exec.h"
#include "log.h"
#include "saga.h"

/* One saga in memory. */
typedef struct SagaRun
{
	SagaInstanceRow row;
	SagaDefinition *def;
	SagaState  *state;
	MemoryContext context;		/* holds all of it */
	struct Known *known;

	/* ---- payloads.c ---- */
	int			maxsteps;		/* room of the arrays by step */
	Jsonb	  **results;
	Jsonb	  **items;			/* of an EACH: its elements */
	const char **names;			/* as far as they were asked for */
	Jsonb	  **skip_result;	/* of skip verbs that wait for a claim */
	struct SagaLetters *letters;	/* what signals brought */
	char	   *started_by;		/* role name */

	/* what the instance row says now, and will say after this turn */
	uint8		written_state;
	uint8		written_direction;
	uint8		written_cause;
	int			change;			/* index into the turn's changes, or -1 */
	char	   *failed_step;	/* why it is being undone */
	char		failed_sqlstate[6];
	char	   *failed_error;
	char		sqlstate[6];	/* of the last failure */
	char	   *error;

	bool		touched;		/* in the turn's list of runs */
	bool		ordered;		/* has unwritten records that a replay would
								 * not decide again: calls must wait */
	bool		evict;			/* leave memory when this turn is written */
	bool		ended_elsewhere;	/* an executor ended the row */
	bool		stuck_written;
	bool		holds;			/* it may hold locks or reservations */
	struct Gate *gate;			/* counts it, if its definition has a limit */
	int			calls;			/* out */
	bool		end_undone;		/* its end was decided and is not written */
	bool		told;			/* of it: parent and children */
	bool		reload;			/* to be read again when this turn is written */
	struct SagaAmends *amends;	/* amend.c's: what an operator has changed */
} SagaRun;

/* Every live saga of ours, in memory or not: there may be a million. */
typedef struct Known
{
	pg_uuid_t	id;				/* hash key */
	SagaRun    *run;			/* NULL: not in memory */
	SagaTime	due;			/* next thing by time, NEVER = none */
	int32		timer_at;		/* place in the heap of timers, or -1 */
	int32		arrival_at;		/* place in the heap of arrivals, or -1 */
	int32		priority;
	int16		failures;		/* how often it was set aside */
	bool		at_gate:1;		/* waits in the queue of its gate */
	bool		has_wakeup:1;	/* has a row in saga.wakeup */
	bool		outcomes_unread:1;	/* was set aside: local outcomes may stand */
	bool		clean:1;		/* evicted by us, with nothing uncertain */
} Known;

/* A call that is out. */
typedef struct SagaCallOut
{
	uint64		tag;			/* hash key */
	SagaRun    *run;			/* NULL: nobody wants the answer any more */
	SagaCall   *call;
	pg_uuid_t	saga_id;
	int32		node;			/* step of the state, or a pseudo-node */
	int32		attempt;
	uint8		op;
	uint8		hook;
	uint8		eval;			/* SAGA_EVAL_NONE, or what is evaluated */
	int64		value;			/* ... and what came of it, for the machine */
	Jsonb	   *held;			/* the result that decline_if is about */
	bool		local;
	bool		conditional;
	bool		asks_first;		/* a claim before an undo elsewhere */
	bool		woken;			/* what it may have to wait for has come */
	SagaTime	retry_after;	/* as the participant, or a lock, wishes; 0 = nothing */
	bool		solo;
	int			executor;		/* local: which, -1 = waiting for one */
	char	   *message;		/* local: the request, until it is sent */
	Size		message_length;
	dlist_node	node_link;		/* local: in the waiting list */
} SagaCallOut;

/* ---- runs.c ---- */
extern void saga_runs_init(void);

/* How saga_take_in() comes to a saga. */
typedef enum SagaAdmission
{
	SAGA_ADMIT_START,			/* it waits for a definition's limit or pause */
	SAGA_ADMIT_COMMAND,			/* it does not */
	SAGA_ADMIT_LETTER,			/* one that has not begun is left alone */
	SAGA_ADMIT_ENDED,			/* as a command, and also one that has ended */
} SagaAdmission;

extern SagaRun *saga_take_in(Known *known, SagaAdmission how, bool *pending);
extern void saga_forget(Known *known);
extern Known *saga_known(const pg_uuid_t *id, bool create);
extern void saga_set_due(Known *known, SagaTime due);
extern void saga_arrive(const pg_uuid_t *id, int64 inbox_id, int32 priority);
extern void saga_sleeps(const pg_uuid_t *id, TimestampTz due);
extern bool saga_arrivals_pending(void);
extern int	saga_runs_loaded(void);
extern int64 saga_runs_known(void);

/* In a transaction: take what is in the inbox, then arrivals into memory. */
extern void saga_runs_command(uint64 buckets, int max);
extern void saga_runs_admit(uint64 buckets, int max);
extern void saga_runs_timers(SagaTime now);
extern SagaTime saga_runs_next_due(void);
extern void saga_run_free(SagaRun *run, bool forget);

/* A saga was met that was started in another database. */
extern bool saga_found_foreign;

/* Outcome rows that recovery found; their sagas get them when taken in. */
extern void saga_recovered_outcomes(SagaOutcome *outcomes, int n);

/* The saga that is worked on, and what to do if that raised an error. */
extern pg_uuid_t saga_current;
extern bool saga_current_set;
extern void saga_run_set_aside(const pg_uuid_t *id, const ErrorData *error);

/* ---- inbox.c ---- */
extern void saga_inbox_init(void);
extern void saga_inbox_take(int64 inbox_id);

/* Rows that came before their saga began are taken now. */
extern void saga_inbox_reread(const pg_uuid_t *id);

/* Signals of an ended saga that nobody has taken, as records; taken now. */
extern SagaLogEntry *saga_inbox_late_signals(SagaRun *run, int *n);
extern void saga_commands_written(void);

/* Its place among the definition's signals, or -1. */
extern int	saga_signal_number(const SagaDefinition *def, const char *signal);

/* ---- payloads.c ---- */
extern void saga_run_grow(SagaRun *run);
extern const char *saga_step_name(SagaRun *run, int step);
extern int	saga_step_of_name(const SagaRun *run, const char *name);
extern int	saga_node_of(const SagaRun *run, int step);
extern Jsonb *saga_keep_result(SagaRun *run, const Jsonb *result);
extern bool saga_signal_seen(SagaRun *run, const char *signal_id);
extern void saga_complete_payload(SagaRun *run, const SagaRecord *r, SagaPayload *p);
extern void saga_remember_record(SagaRun *run, const SagaRecord *r,
								 const SagaPayload *p);

/* ---- turn.c ---- */
extern SagaTurn saga_turn;		/* what is decided and not yet written */
extern MemoryContext saga_turn_context;
extern bool saga_turn_flush;	/* somebody waits for it to be durable */
extern bool saga_turn_commit;	/* ... or to be committed only */
extern TimestampTz saga_turn_since; /* of its oldest record, 0 = empty */

/* Grow one of the turn's arrays; they live in the turn's context. */
#define SAGA_APPEND(array, n, max) \
	((n) < (max) ? &(array)[(n)++] : \
	 ((max) = Max(64, (max) * 2), \
	  (array) = (array) ? repalloc_huge((array), sizeof(*(array)) * (max)) : \
	  MemoryContextAllocHuge(saga_turn_context, sizeof(*(array)) * (max)), \
	  &(array)[(n)++]))

extern void saga_turn_init(void);

/* False if the machine had no use for the event. */
extern bool saga_run_feed(SagaRun *run, SagaEvent *event, SagaPayload *payload);
extern void saga_run_answer(SagaCallOut *call, SagaAnswerKind answer, bool free,
							SagaPayload *payload);
extern void saga_run_lost(SagaCallOut *call);
extern void saga_run_recovered(SagaRun *run, const SagaOutcome *outcome);
extern void saga_run_resume(SagaRun *run);
extern void saga_run_note(SagaRun *run, SagaRecordKind kind, int step,
						  SagaPayload *payload);
extern SagaInstanceChange *saga_run_change(SagaRun *run);
extern void saga_turn_drop(const pg_uuid_t *id, const SagaRun *run);

/* In the turn's transaction, before saga_log_write(). */
extern void saga_turn_prepare(void);

/* After the turn's transaction: forget what is written, start what waited. */
extern void saga_turn_written(XLogRecPtr lsn);

/* ---- calls.c ---- */
extern void saga_calls_init(void);
extern bool saga_command_is_local(const SagaRun *run, const SagaCommand *command);
extern void saga_start_call(SagaRun *run, const SagaCommand *command);

/* May it start before anything of its saga's is written? */
extern bool saga_starts_at_once(const SagaRun *run, const SagaCommand *command);

/* An expression was evaluated, by an executor. */
extern void saga_evaluated(SagaCallOut *call, SagaAnswerKind answer,
						   SagaPayload *payload);

/* A remote call was done: is its result to be taken as a refusal? */
extern void saga_ask_decline_if(SagaCallOut *call, SagaPayload *payload);

/* A local call, or an expression, goes to an executor once more. */
extern void saga_call_again(SagaCallOut *call, bool solo);
extern void saga_asked_first(SagaCallOut *call, SagaAnswerKind answer, bool free,
							 SagaPayload *payload);
extern void saga_send_later(SagaRun *run, const SagaCommand *command);
extern void saga_sends_drop(const pg_uuid_t *id);
extern void saga_sends_hold(XLogRecPtr lsn);

/* Calls whose records are durable up to here may go out. */
extern void saga_sends_release(XLogRecPtr durable);
extern bool saga_sends_held(XLogRecPtr durable);
extern bool saga_sends_wait_for_standby(XLogRecPtr durable);

/* In a transaction: have participants drop barrier rows past keeping. */
extern void saga_purge_barriers(void);

/* The names and values of a call. */
extern void saga_run_values(SagaRun *run, int step, SagaOp op, int attempt,
							SagaValues *values);

/* ---- orphans.c ---- */

/*
 * In a transaction: ask the participants of two-phase commit, if it is time
 * to, which prepared transactions of ours stand there.
 */
extern void saga_orphans_look(bool time_to);
extern bool saga_orphans_asked(uint64 tag);
extern void saga_orphans_answer(const SagaAnswer *answer);

/* ---- dispatch.c ---- */
extern void saga_dispatch_init(SagaWorkerSlot *coordinator);
extern SagaCallOut *saga_call_out(SagaRun *run, SagaCall *call, int node, SagaOp op,
								  SagaHook hook, int attempt);
extern void saga_call_done(SagaCallOut *call);
extern SagaCallOut *saga_call_by_tag(uint64 tag);
extern void saga_calls_forget_run(SagaRun *run);

/* A wake-up that may be faster than the answer it is for. */
extern void saga_call_woken(const SagaRun *run, int32 step);
extern void saga_dispatch_local(SagaCallOut *call, char **values, int nvalues);
extern void saga_call_cancel(SagaRun *run, int step, SagaOp op);
extern bool saga_call_is_out(SagaRun *run, int step, SagaOp op);
extern bool saga_dispatch_executors_gone(void);	/* none serves another */
extern void saga_dispatch_attach(void);
extern void saga_dispatch_pump(void);	/* in a transaction: replies, losses */
extern void saga_dispatch_flush(void);	/* send what has gathered */

/* Have an executor do a job of the database's. */
extern void saga_dispatch_job(SagaHook hook);

#endif							/* SAGA_COORDINATOR_H */
