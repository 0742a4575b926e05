/*
 * machine_private.h
 *		What the parts of the state machine share: machine.c (events, verbs,
 *		answers), machine_undo.c (order of the undo), machine_fold.c (records).
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
	return &state->graph->nodes[step - state->steps];
}

static inline bool
is_node(const SagaState *state, int32 node)
{
	return node >= 0 && node < state->graph->nnodes;
}

/* Is the step's current operation its compensation? */
static inline bool
in_undo_phase(const SagaStep *step)
{
	return step->status >= SAGA_STEP_UNDO_CALLING &&
		step->status <= SAGA_STEP_UNDO_STUCK;
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

static inline PivotPhase
pivot_phase(const SagaState *state)
{
	const SagaStep *pivot;

	if (state->graph->pivot < 0)
		return PIVOT_OPEN;
	pivot = &state->steps[state->graph->pivot];
	if (pivot->status == SAGA_STEP_DONE || pivot->status == SAGA_STEP_SKIPPED ||
		pivot->continued)
		return PIVOT_PASSED;
	if (pivot->in_flight || pivot->maybe || pivot->lost || pivot->claiming)
		return PIVOT_UNSURE;
	return PIVOT_OPEN;
}

/* machine_fold.c */
extern void saga_step_set_status(SagaState *state, SagaStep *step,
								 SagaStepStatus status);

/* machine.c */
extern SagaRecord saga_record(SagaRecordKind kind, int32 node, SagaOp op);
extern bool saga_emit(Machine *m, SagaRecord *record);
extern void saga_call(Machine *m, int32 node, SagaOp op);

/* machine_undo.c */
extern void saga_undo_begin(Machine *m);
extern void saga_undo_touch(Machine *m, int32 node);
extern void saga_undo_settle(Machine *m, int32 node);
extern void saga_undo_advance(Machine *m);
extern bool saga_undo_finished(const SagaState *state);

#endif							/* SAGA_MACHINE_PRIVATE_H */
