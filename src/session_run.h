/*
 * session_run.h
 *		A saga driven within one session, without workers and network: the
 *		machine decides, local actions really run (each in a subtransaction,
 *		as their owner), everything else is answered by the caller.
 */
#ifndef SAGA_SESSION_RUN_H
#define SAGA_SESSION_RUN_H

#include "postgres.h"

#include "nodes/pg_list.h"
#include "utils/jsonb.h"
#include "utils/uuid.h"

#include "definition.h"

typedef struct SagaSessionAnswer
{
	SagaAnswerKind kind;
	char		sqlstate[6];	/* "" = none */
	char	   *message;
	Jsonb	   *result;
	int64		value;			/* of an expression */
} SagaSessionAnswer;

typedef struct SagaSessionRun SagaSessionRun;

/* Who drives it. */
typedef struct SagaSessionDriver
{
	/* Answer a call in its place: true if *answer is set. */
	bool		(*answer) (SagaSessionRun *run, const SagaCommand *command,
						   const SagaCall *call, SagaSessionAnswer *answer);

	/* A signal step waits: true if the signal comes, with this payload. */
	bool		(*signal) (SagaSessionRun *run, int32 step, Jsonb **payload);

	/* A call was answered; 'sent' (saga_rendered()) is NULL for local ones. */
	void		(*called) (SagaSessionRun *run, const SagaCommand *command,
						   const SagaCall *call, Jsonb *sent,
						   const SagaSessionAnswer *answer);

	/* A record was made. */
	void		(*wrote) (SagaSessionRun *run, const SagaRecord *record,
						  const SagaSessionAnswer *answer);

	/*
	 * Going forward: before the pivot is called, or else before the saga
	 * completes.  In undo: when all is undone, before the ending action.
	 */
	void		(*turning) (SagaSessionRun *run);
} SagaSessionDriver;

struct SagaSessionRun
{
	/* set by the caller; functions of the driver may be NULL */
	SagaDefinition *def;
	Jsonb	   *input;
	const SagaSessionDriver *driver;
	void	   *arg;
	SagaTime	now;			/* the clock of the run */
	SagaTime	until;			/* it does not wait past this */

	/* the run's own */
	MemoryContext context;
	pg_uuid_t	id;
	SagaTime	skew;			/* of its clock against the real one */
	TimestampTz started_at;
	SagaState  *state;
	int			nresults;
	Jsonb	  **results;		/* by step */
	Jsonb	  **items;
	List	   *signals;		/* of SagaSessionSignal */
	List	   *pending;		/* of SagaCommand */
	bool		turned[2];		/* by direction: turning() has been called */
	bool		took;			/* locks or reservations */
	int			decisions;
};

/* More than this many decisions and the run is given up. */
#define SAGA_SESSION_DECISIONS	5000

/* Drive it as far as it goes; in a transaction that the caller rolls back. */
extern void saga_session_run(SagaSessionRun *run);

/*
 * Undo what was done so far, newest first, whatever the machine would do:
 * compensations are called, and called() told.
 */
extern void saga_session_undo(SagaSessionRun *run);

extern const char *saga_session_step_name(const SagaSessionRun *run, int32 step);

/*
 * An error in words: "SQLSTATE", "SQLSTATE: message", or a message, which
 * means declined.
 */
extern void saga_session_error(const char *text, const SagaCall *call,
							   SagaSessionAnswer *answer);

/* The definition's newest version; 42704, 42501 (also for superusers' steps). */
extern SagaDefinition *saga_session_definition(const char *name, bool owner);

#endif							/* SAGA_SESSION_RUN_H */
