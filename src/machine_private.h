/*
 * machine_private.h
 *		What the parts of the state machine share: machine.c (decisions and
 *		entries), machine_answers.c, machine_verbs.c, machine_undo.c (order of
 *		the undo), machine_fold.c (records).
 *
 * Nobody else includes this.
 */
#ifndef SAGA_MACHINE_PRIVATE_H
#define SAGA_MACHINE_PRIVATE_H

#include "machine.h"

#define SAGA_HOOK_LIMIT		10	/* failures of a hook, then stuck */
#define SAGA_CLAIM_LIMIT	10	/* of a claim nobody asked for, then stuck */

/* One decision being made. */
typedef struct Machine
{
	SagaState  *state;
	const SagaGraph *graph;
	SagaTime	now;
	double		random;
	SagaDecision *out;
} Machine;

/* What the pivot allows the rest of the saga to do. */
typedef enum PivotPhase
{
	PIVOT_OPEN,					/* has had no effect: undo is possible */
	PIVOT_UNSURE,				/* may have, or will soon: wait */
	PIVOT_PASSED,				/* only forward from here */
} PivotPhase;

static inline const SagaNode *
node_of(const SagaState *state, const SagaStep *step)
{
	return &state->graph->nodes[step->node];
}

/* The current run of a node in a scope run. */
static inline int32
sibling(const SagaState *state, int32 run, int32 node)
{
	const SagaScopeRun *r = &state->runs[run];

	return r->steps[node - state->graph->scopes[r->scope].first];
}

static inline bool
is_step(const SagaState *state, int32 step)
{
	return step >= 0 && step < state->nsteps;
}

/* Is more of its action to come? */
static inline bool
step_is_open(uint8 status)
{
	return status <= SAGA_STEP_STUCK ||
		(status >= SAGA_STEP_EVALUATING && status <= SAGA_STEP_SCOPED);
}

/* Is the step's current operation its compensation? */
static inline bool
in_undo_phase(const SagaStep *step)
{
	return step->status >= SAGA_STEP_UNDO_CALLING &&
		step->status <= SAGA_STEP_UNDO_STUCK;
}

/* Is the step among those being undone, rather than going forward? */
static inline bool
undoing(const SagaState *state, const SagaStep *step)
{
	return state->direction == SAGA_UNDO &&
		(state->back_to == SAGA_NO_NODE || step->region);
}

static inline bool
is_local(const SagaState *state, const SagaStep *step, bool undo)
{
	return undo ? node_of(state, step)->compensation_local :
		node_of(state, step)->action_local;
}

/* A local undo in flight has no record, so its status is not yet UNDO_*. */
static inline int32
undo_attempts(const SagaStep *step)
{
	return in_undo_phase(step) && step->status != SAGA_STEP_UNDO_CALLING ?
		step->attempts : 0;
}

/* The pivot is in no body, so that one run of it counts at a time. */
static inline const SagaStep *
pivot_step(const SagaState *state)
{
	int32		pivot = state->graph->pivot;

	return pivot < 0 ? NULL : &state->steps[sibling(state, 0, pivot)];
}

static inline PivotPhase
pivot_phase(const SagaState *state)
{
	const SagaStep *pivot = pivot_step(state);

	if (pivot == NULL)
		return PIVOT_OPEN;
	if (pivot->status == SAGA_STEP_DONE || pivot->status == SAGA_STEP_SKIPPED ||
		pivot->continued)
		return PIVOT_PASSED;
	if (pivot->in_flight || pivot->maybe || pivot->lost || pivot->claiming)
		return PIVOT_UNSURE;
	return PIVOT_OPEN;
}

static inline SagaStep *
machine_step(SagaState *state, int32 node)
{
	return node == SAGA_NODE_END ? &state->hook : &state->steps[node];
}

static inline void
machine_call_is_over(SagaState *state, SagaStep *step)
{
	step->in_flight = false;
	state->in_flight--;
}

static inline void
machine_claim_is_over(SagaState *state, SagaStep *step)
{
	step->claim_out = false;
	state->in_flight--;
}

/* machine_scopes.c */
extern void machine_push(SagaState *state, SagaSteps *list, int32 step);
extern void machine_meet(SagaState *state, int32 step);
extern void machine_start_run(SagaState *state, int32 run);

/* machine_fold.c */
extern void machine_set_status(SagaState *state, SagaStep *step,
							   SagaStepStatus status);

/* machine.c */
extern const SagaRetry machine_own_retry;

extern SagaRecord machine_record(SagaRecordKind kind, int32 node, SagaOp op);
extern bool machine_try_emit(Machine *m, SagaRecord *record);
extern bool machine_emit(Machine *m, SagaRecord *record);
extern bool machine_emit_simple(Machine *m, SagaRecordKind kind, int32 node,
								SagaOp op);
extern void machine_call(Machine *m, int32 node, SagaOp op);
extern void machine_forget_calls(Machine *m, int32 node);
extern void machine_restart_calls(SagaState *state);
extern SagaTime machine_retry_at(const Machine *m, const SagaRetry *retry,
								 int32 n, SagaTime retry_after);
extern bool machine_is_doubtful(const SagaState *state, const SagaStep *step);
extern void machine_stuck(Machine *m, int32 node, SagaOp op,
						  SagaStuckReason reason);
extern void machine_turn(Machine *m, SagaCause cause, int32 node,
						 const void *payload);
extern void machine_claim(Machine *m, int32 node, const void *payload);
extern void machine_end(Machine *m, SagaStateName state, SagaCause cause);
extern void machine_end_in_direction(Machine *m);

/* machine_answers.c */
extern void machine_on_answer(Machine *m, const SagaEvent *event);
extern void machine_on_lost(Machine *m, const SagaEvent *event);
extern void machine_report_failures(Machine *m, int32 node);

/* machine_verbs.c */
extern void machine_on_verb(Machine *m, const SagaEvent *event);

/* machine_undo.c */
extern void machine_undo_begin(Machine *m);
extern void machine_undo_touch(Machine *m, int32 node);
extern void machine_undo_settle(Machine *m, int32 node);
extern void machine_undo_advance(Machine *m);
extern bool machine_undo_finished(const SagaState *state);

/* ------------------------------------------------------- the ending */

static inline bool
hook_over(const SagaState *state)
{
	return state->hook.status == SAGA_STEP_DONE ||
		state->hook.status == SAGA_STEP_SKIPPED;
}

/* Are all nodes settled, so that only the ending is left? */
static inline bool
all_settled(const SagaState *state)
{
	return state->direction == SAGA_FORWARD ?
		state->open + state->nheld == 0 : machine_undo_finished(state);
}

static inline bool
has_ending_hook(const SagaState *state)
{
	return state->direction == SAGA_FORWARD ? state->graph->has_on_completed :
		state->graph->has_on_compensated;
}

#endif							/* SAGA_MACHINE_PRIVATE_H */
