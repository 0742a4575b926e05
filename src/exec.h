/*
 * exec.h
 *		The two messages between a coordinator and its executors.
 *
 * They travel through shared-memory queues of one segment that the executor
 * makes: an executor serves one incarnation of one coordinator and ends with
 * it, so a local action is never run twice at the same time.
 */
#ifndef SAGA_EXEC_H
#define SAGA_EXEC_H

#include "postgres.h"

#include "storage/dsm.h"
#include "storage/shm_mq.h"
#include "utils/uuid.h"

#include "definition.h"

#define SAGA_QUEUE_SIZE		((Size) 256 * 1024)

/* Limits of an action that shares its transaction with others. */
#define SAGA_BATCH_ACTIONS		32
#define SAGA_BATCH_MS			2
#define SAGA_SHARED_LOCK_MS		5
#define SAGA_SHARED_RUN_MS		20

typedef enum SagaHook
{
	SAGA_HOOK_NONE,
	SAGA_HOOK_COMPLETED,
	SAGA_HOOK_COMPENSATED,
	SAGA_HOOK_STUCK,
	SAGA_HOOK_UPKEEP,			/* no action: run saga.upkeep() */
	SAGA_HOOK_SCHEDULES,		/* ... start what is scheduled */
} SagaHook;

/*
 * Run one action.  The values follow: int32 length or -1, bytes, '\0' each.
 * Several requests, and several replies, travel as one message, one after the
 * other; 'size' leads to the next.
 */
typedef struct SagaExecRequest
{
	uint32		size;			/* of this request with its values, aligned */
	uint64		tag;
	pg_uuid_t	saga_id;
	int64		definition_id;
	int32		node;			/* of the definition, or a pseudo-node */
	int32		step;			/* of the state: with op, the outcome's key */
	int32		attempt;
	uint8		op;				/* SagaOp */
	uint8		hook;			/* SagaHook */
	uint8		eval;			/* SAGA_EVAL_NONE: run the call; else evaluate:
								 * SagaEval, or one of those below */
	bool		has_signals;	/* an end must not overtake one */
	bool		solo;			/* alone in its transaction, normal limits */
	bool		holds;			/* the saga may hold locks or reservations */
	bool		two_phase;		/* of def->two_phase */
	int32		nvalues;		/* of the call and of what follows it */
} SagaExecRequest;

/* Expressions that the machine does not know of. */
#define SAGA_EVAL_DECLINE_IF	100 /* of a remote result: true = declined */
#define SAGA_EVAL_INPUT			101 /* of a QUEUE: what saga.take() returns */
#define SAGA_EVAL_NONE			255

/* What became of it.  Texts and result follow, each with its '\0'. */
typedef struct SagaExecReply
{
	uint32		size;			/* of this reply with what follows, aligned */
	uint64		tag;
	uint8		answer;			/* SagaAnswerKind */
	bool		alone;			/* not run: wants to be alone */
	bool		slow;			/* ran longer than a shared action may */
	bool		holds;			/* the saga now holds, or waits for, a lock or
								 * a reservation */
	bool		free;			/* waits for a lock: eats no attempt */
	int32		retry_ms;		/* ... and is not tried again before this */
	char		sqlstate[6];
	int32		message_length; /* with '\0'; 0 = none */
	int32		result_length;	/* a Jsonb datum; 0 = null */
} SagaExecReply;

/* How saga.local_outcome names an operation. */
static inline char
saga_outcome_op(SagaOp op)
{
	return op == SAGA_OP_UNDO ? 'c' : op == SAGA_OP_HOOK ? 'h' : 'a';
}

/* The call or expression a request means, NULL if the definition has none. */
static inline SagaCall *
saga_exec_call(SagaDefinition *def, int node, SagaOp op, SagaHook hook, int eval)
{
	SagaCall   *call;

	switch (hook)
	{
		case SAGA_HOOK_COMPLETED:
			return def->on_completed;
		case SAGA_HOOK_COMPENSATED:
			return def->on_compensated;
		case SAGA_HOOK_STUCK:
			return def->on_stuck;
		case SAGA_HOOK_UPKEEP:
		case SAGA_HOOK_SCHEDULES:
			return NULL;
		case SAGA_HOOK_NONE:
			break;
	}
	if (node < 0 || node >= def->graph->nnodes)
		return NULL;
	if (op == SAGA_OP_EVAL)
		return saga_definition_eval(def, node, (SagaEval) eval);
	call = op == SAGA_OP_UNDO ? def->compensation[node] : def->action[node];
	return call && eval == SAGA_EVAL_DECLINE_IF ? call->decline_if : call;
}

/*
 * What is evaluated in the same transaction right after a call, or NULL: its
 * values follow those of the call in the request, with :result still NULL.
 */
static inline SagaCall *
saga_exec_after(SagaDefinition *def, SagaCall *call, SagaOp op, SagaHook hook,
				int eval)
{
	if (hook == SAGA_HOOK_COMPLETED)
		return def->output;
	if (hook == SAGA_HOOK_NONE && op == SAGA_OP_ACTION && eval == SAGA_EVAL_NONE)
		return call ? call->decline_if : NULL;
	return NULL;
}

#endif							/* SAGA_EXEC_H */
