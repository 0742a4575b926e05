/*
 * log.h
 *		The durable side of a saga: its log, its instance row, and the small
 *		tables beside them.  log.c is their only writer while a saga lives
 *		(start.c inserts the instance row; an executor ends it together with
 *		the definition's ending action).
 */
#ifndef SAGA_LOG_H
#define SAGA_LOG_H

#include "postgres.h"

#include "nodes/pg_list.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "connector.h"
#include "machine.h"
#include "shmem.h"

/* What a record carries beside the machine's fields. */
typedef struct SagaPayload
{
	char		sqlstate[6];	/* "" = none */
	const char *message;
	Jsonb	   *result;
	const char *actor;			/* of a verb */
	const char *note;			/* its reason */
} SagaPayload;

typedef struct SagaLogEntry
{
	pg_uuid_t	saga_id;
	SagaRecord	record;
	TimestampTz at;
	const char *step;			/* name, or NULL */
	SagaPayload payload;
} SagaLogEntry;

/* New values of an instance row. */
typedef struct SagaInstanceChange
{
	pg_uuid_t	id;
	SagaStateName state;
	SagaDirection direction;
	SagaCause	cause;
	const char *failed_step;
	const char *sqlstate;
	const char *error;
	TimestampTz ended_at;		/* 0: not ended */
	bool		ended_elsewhere;	/* an executor has written state and end */
	bool		holds;			/* it may hold locks or reservations */
} SagaInstanceChange;

typedef struct SagaOutcomeKey
{
	pg_uuid_t	saga_id;
	int32		node;			/* step of the state, or a pseudo-node */
	char		op;
} SagaOutcomeKey;

typedef struct SagaStuckChange
{
	pg_uuid_t	saga_id;
	bool		stuck;			/* false: no longer */
	const char *step;
	const char *operation;
	const char *reason;
	const char *sqlstate;
	const char *message;
	TimestampTz since;
} SagaStuckChange;

/* A step that is offered to saga.take(), or no longer. */
typedef struct SagaQueued
{
	pg_uuid_t	saga_id;
	const char *step;
	SagaOp		op;
	bool		removed;
	const char *queue;
	const char *definition;
	int32		priority;
	Jsonb	   *input;
} SagaQueued;

typedef struct SagaWakeup
{
	pg_uuid_t	saga_id;
	TimestampTz due;			/* 0: remove; DT_NOEND: until somebody acts */
} SagaWakeup;

/* All that one turn makes durable; written in one transaction. */
typedef struct SagaTurn
{
	int			nentries,
				maxentries;
	SagaLogEntry *entries;
	int			nchanges,
				maxchanges;
	SagaInstanceChange *changes;
	int			noutcomes,
				maxoutcomes;
	SagaOutcomeKey *outcomes;	/* consumed, to be deleted */
	int			ninbox,
				maxinbox;
	int64	   *inbox;			/* consumed, to be deleted */
	int			nstuck,
				maxstuck;
	SagaStuckChange *stuck;
	int			nwakeups,
				maxwakeups;
	SagaWakeup *wakeups;
	int			nreplaced,
				maxreplaced;
	SagaOutcomeKey *replaced;	/* steps that are begun anew */
	int			nqueued,
				maxqueued;
	SagaQueued *queued;
} SagaTurn;

/* Inside a transaction of the coordinator. */
extern void saga_log_write(const SagaTurn *turn);

/* ---- reading ---- */
typedef struct SagaInstanceRow
{
	pg_uuid_t	id;
	int64		definition_id;
	SagaStateName state;
	char	   *key;
	Jsonb	   *input;
	char	   *correlation;
	Oid			started_by;
	TimestampTz started_at;
	TimestampTz start_at;		/* 0: at once */
	TimestampTz deadline;		/* DT_NOEND: none */
	bool		ended;			/* by an executor, log not yet closed */
	int32		origin;			/* saga_origin() of where it was started */
	bool		scheduled;		/* started by a schedule */
	bool		two_phase;		/* protocol */
} SagaInstanceRow;

/* Number of the last record of a saga's log. */
extern int32 saga_log_last_seq(const pg_uuid_t *id);

/* By id in the current context; false if there is no such row. */
extern bool saga_log_read_instance(const pg_uuid_t *id, SagaInstanceRow *row);

/* Of the pseudo-nodes in the log; all others are names of runs of steps. */
#define SAGA_END_NAME		"$end"
#define SAGA_ON_STUCK_NAME	"$on_stuck"

/* Room for the name of a run: the node's, and a number for each body. */
#define SAGA_STEP_NAME_SIZE	512

/*
 * The log of one saga in order, in the current context.  Which step a record
 * is about is only known once the ones before it are folded: saga_log_apply()
 * finds it, sets record.node and folds the record; false if it cannot follow.
 */
extern List *saga_log_read(const pg_uuid_t *id);
extern bool saga_log_apply(SagaState *state, SagaLogEntry *entry);

typedef struct SagaLive
{
	pg_uuid_t	id;
	TimestampTz due;			/* 0: now */
	int32		priority;
} SagaLive;

/*
 * Every live saga of the given buckets (bit mask), or those that no
 * coordinator has begun; in pieces, as there may be a million.
 */
extern void saga_log_read_live(uint64 buckets, bool pending_only,
							   void (*each) (const SagaLive *live));

typedef struct SagaOutcome
{
	SagaOutcomeKey key;
	int32		attempt;
	Jsonb	   *result;
} SagaOutcome;

/* Committed local actions that are not in the log yet. */
extern SagaOutcome *saga_log_read_outcomes(uint64 buckets, const pg_uuid_t *only,
										   int *n);

/*
 * Sagas begun before this time that are live or have not ended before it
 * either, as a uuid[] literal.
 */
extern char *saga_log_read_spared(TimestampTz before);

typedef struct SagaInboxRow
{
	int64		id;
	pg_uuid_t	saga_id;
	char	   *verb;
	char	   *step;
	Jsonb	   *result;
	bool		force;
	char	   *actor;
	char	   *note;
	char	   *operation;		/* of an answer: action, undo */
	char	   *kind;			/* of an answer: as saga_answer_name() says it */
	int64		value;
	bool		has_value;
} SagaInboxRow;

extern bool saga_log_read_inbox(int64 id, SagaInboxRow *row);
extern SagaRingEntry *saga_log_list_inbox(uint64 buckets, int *n);

/* The same of one saga; signals only, or all. */
extern SagaRingEntry *saga_log_list_inbox_of(const pg_uuid_t *id, bool signals,
											 int *n);

/*
 * Raise the epoch when this is not the server incarnation that last called
 * participants.  Returns NULL, or why sagas must be held (palloc'd).
 */
extern char *saga_log_raise_epoch(SagaEpoch *epoch);

#define SAGA_HELD_RESTORED	"the sagas were restored from a dump"

/* The mark of sagas that were started in this database, not restored into it. */
extern int32 saga_origin(void);

/* Hold all sagas of this database until saga.take_over(). */
extern void saga_log_hold(const char *reason);

#endif							/* SAGA_LOG_H */
