/*
 * machine_private.h
 *		What the parts of the state machine share:
 *
 *		machine.c			entries, output, what is done after each event
 *		machine_forward.c	beginning steps, expressions, bodies, failures
 *		machine_answers.c	what an answer means
 *		machine_waits.c		times, signals, calls that were accepted
 *		machine_undo.c		the order of the undo
 *		machine_verbs.c		operators
 *		machine_fold.c		records: the only writers of the lasting state
 *		machine_fold_steps.c	... about one step
 *		machine_scopes.c	... that make runs of nodes, or end them
 *		machine_steps.c		names of runs
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

/* ------------------------------------------------------- steps */

static inline const SagaNode *
node_of(const SagaState *state, const SagaStep *step)
{
	return &state->graph->nodes[step->node];
}

static inline int32
index_of(const SagaState *state, const SagaStep *step)
{
	return (int32) (step - state->steps);
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

static inline SagaStep *
machine_step(SagaState *state, int32 node)
{
	return node == SAGA_NODE_END ? &state->hook : &state->steps[node];
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
	return (step->status >= SAGA_STEP_UNDO_CALLING &&
			step->status <= SAGA_STEP_UNDO_STUCK) ||
		step->status == SAGA_STEP_UNDO_ACCEPTED;
}

/* Is the step among those being undone, rather than going forward? */
static inline bool
undoing(const SagaState *state, const SagaStep *step)
{
	return state->direction == SAGA_UNDO &&
		(state->back_to == SAGA_NO_NODE || step->region);
}

/* Does anything go forward? */
static inline bool
going_forward(const SagaState *state)
{
	return state->direction == SAGA_FORWARD || state->back_to != SAGA_NO_NODE;
}

/* Its action (or compensation) is SQL here, or it is none at all. */
static inline bool
is_local(const SagaState *state, const SagaStep *step, bool undo)
{
	const SagaNode *node = node_of(state, step);

	return undo ? node->compensation_local :
		node->action_local || node->kind != SAGA_NODE_STEP;
}

/* A remote action of which a call may have been sent. */
static inline bool
is_sent(const SagaState *state, const SagaStep *step)
{
	return step->intent_at > 0 && !is_local(state, step, false);
}

/* A local undo in flight has no record, so its status is not yet UNDO_*. */
static inline int32
undo_attempts(const SagaStep *step)
{
	return in_undo_phase(step) && step->status != SAGA_STEP_UNDO_CALLING ?
		step->attempts : 0;
}

/* ------------------------------------------------------- the pivot */

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
		pivot->continued || state->past_pivot)
		return PIVOT_PASSED;
	if (pivot->in_flight || pivot->maybe || pivot->lost || pivot->claiming)
		return PIVOT_UNSURE;
	return PIVOT_OPEN;
}

/* ------------------------------------------------------- parts */

/* machine_scopes.c */
extern void machine_push(SagaState *state, SagaSteps *list, int32 step);
extern void *machine_enlarge(SagaState *state, void *old, int32 n, int32 *max,
							 int32 more, size_t size);
extern void machine_meet(SagaState *state, int32 step);
extern void machine_start_run(SagaState *state, int32 run);
extern void machine_settle(SagaState *state, SagaStep *step);
extern void machine_nodes_after(const SagaGraph *graph, int32 node,
								bool *after);
extern bool machine_is_after(const SagaState *state, int32 step, int32 run,
							 const bool *after);
extern void machine_pass_cases(SagaState *state, SagaStep *step);
extern bool machine_may_restart(const SagaState *state, const SagaStep *step);
extern bool machine_apply_scope(SagaState *state, const SagaRecord *record);
extern bool machine_mark_region(SagaState *state, int32 savepoint,
								int32 failed);

/* machine_fold.c */
extern void machine_count(SagaState *state, const SagaStep *step, int32 by);
extern void machine_recount(SagaState *state);
extern void machine_set_status(SagaState *state, SagaStep *step,
							   SagaStepStatus status);
extern void machine_choose_stuck(SagaState *state);
extern void machine_relieve(SagaState *state, SagaStep *step);

/* machine_fold_steps.c */
extern bool machine_apply_step(SagaState *state, const SagaRecord *record);

/* machine_steps.c */
extern bool machine_needs_eval(const SagaState *state, const SagaStep *step,
							   SagaEval *eval);
extern int32 machine_run_by_number(const SagaState *state, int32 owner,
								   int32 number);
extern SagaOp machine_op(const SagaState *state, const SagaStep *step);

/* machine.c */
extern const SagaRetry machine_own_retry;

extern SagaRecord machine_record(SagaRecordKind kind, int32 node, SagaOp op);
extern bool machine_try_emit(Machine *m, SagaRecord *record);
extern bool machine_emit(Machine *m, SagaRecord *record);
extern bool machine_emit_simple(Machine *m, SagaRecordKind kind, int32 node,
								SagaOp op);
extern bool machine_emit_value(Machine *m, SagaRecordKind kind, int32 node,
							   int64 value);
extern bool machine_emit_due(Machine *m, SagaRecordKind kind, int32 node,
							 SagaTime due);
extern void machine_call(Machine *m, int32 node, SagaOp op);
extern void machine_call_is_over(SagaState *state, SagaStep *step);
extern void machine_claim_is_over(SagaState *state, SagaStep *step);
extern void machine_forget_call(Machine *m, int32 node);
extern void machine_forget_calls(Machine *m, int32 node);
extern void machine_set_lost(SagaState *state, SagaStep *step, bool lost);
extern void machine_restart_calls(SagaState *state);
extern SagaTime machine_retry_at(const Machine *m, const SagaRetry *retry,
								 int32 n, SagaTime retry_after);
extern bool machine_is_doubtful(const SagaState *state, const SagaStep *step);
extern void machine_stuck(Machine *m, int32 node, SagaOp op,
						  SagaStuckReason reason);
extern void machine_turn(Machine *m, SagaCause cause, int32 node,
						 int32 back_to, const void *payload);
extern void machine_claim(Machine *m, int32 node, const void *payload);
extern void machine_end(Machine *m, SagaStateName state, SagaCause cause);
extern void machine_end_in_direction(Machine *m);

/* machine_forward.c */
extern void machine_begin_ready(Machine *m);
extern void machine_begin_again(Machine *m, int32 i);
extern void machine_continue_body(Machine *m, int32 i);
extern void machine_answer_eval(Machine *m, const SagaEvent *event);
extern void machine_judge_failures(Machine *m);

/* machine_answers.c */
extern void machine_on_answer(Machine *m, const SagaEvent *event);
extern void machine_answer_step(Machine *m, const SagaEvent *event);
extern void machine_on_lost(Machine *m, const SagaEvent *event);
extern bool machine_wants_retry(const Machine *m, int32 i,
								const SagaEvent *event,
								const SagaRecord *record);
extern bool machine_give_up_once(Machine *m, int32 i);
extern void machine_report_failures(Machine *m, int32 node);

/* machine_waits.c */
extern void machine_set_wake(SagaState *state, int32 i);
extern void machine_find_wakes(SagaState *state);
extern void machine_start_due(Machine *m);
extern void machine_deliver_mail(Machine *m);
extern bool machine_find_mail(const SagaState *state, int32 signal,
							  int32 *seq);
extern void machine_on_signal(Machine *m, const SagaEvent *event);
extern void machine_on_completed(Machine *m, const SagaEvent *event);
extern void machine_on_heartbeat(Machine *m, const SagaEvent *event);
extern SagaTime machine_time_out(const Machine *m, SagaTime timeout);
extern void machine_accept(Machine *m, const SagaEvent *event);
extern void machine_waits_resume(Machine *m);

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

/* Are all steps settled, so that only the ending is left? */
static inline bool
all_settled(const SagaState *state)
{
	if (state->direction == SAGA_FORWARD)
		return state->open + state->nheld == 0;
	return state->back_to == SAGA_NO_NODE && machine_undo_finished(state);
}

static inline bool
has_ending_hook(const SagaState *state)
{
	return state->direction == SAGA_FORWARD ? state->graph->has_on_completed :
		state->graph->has_on_compensated;
}

#endif							/* SAGA_MACHINE_PRIVATE_H */
