/*
 * machine_undo.c
 *		The order of the undo: which step is compensated when.
 *
 * Called by the other machine_*.c, in direction UNDO.  Keeps, beside the
 * state's lasting part, the class of every step and how many others still
 * stand in its way, so that one answer costs O(log n), not a scan.  All of it
 * is ephemeral: machine_undo_begin() finds it again from the fold.
 *
 * In the way of a step are those that follow it, the take that replaced it,
 * and, in a body, all that follows the body's owner; an owner is in the way of
 * what it followed until its bodies are undone.  Of an undo back to a
 * save-point the steps outside its region know nothing.
 *
 * A step is CLEAR when nothing of it or of what follows it is left.  Order
 * REVERSE also waits for that: completion times alone would do, were it not
 * for a crash that loses the record of a step but not that of the local step
 * after it, which then counts as the older one.
 */
#include "machine_private.h"

enum
{
	UNDO_NONE,					/* nothing to undo, but others may have */
	UNDO_CLEAR,
	UNDO_AWAITED,				/* its action or claim is still unanswered */
	UNDO_NEEDED,
	UNDO_ACTIVE,
};

static uint8
classify(const SagaState *state, const SagaStep *step)
{
	const SagaNode *node = node_of(state, step);

	switch (step->status)
	{
		case SAGA_STEP_CALLING:
		case SAGA_STEP_BACKOFF:
		case SAGA_STEP_ACCEPTED:
			return UNDO_AWAITED;
		case SAGA_STEP_DONE:
		case SAGA_STEP_FAILED:
			if (step->claiming)
				return UNDO_AWAITED;
			return node->has_compensation &&
				(step->happened || step->maybe) ? UNDO_NEEDED : UNDO_NONE;
		case SAGA_STEP_UNDO_CALLING:
		case SAGA_STEP_UNDO_BACKOFF:
		case SAGA_STEP_UNDO_STUCK:
		case SAGA_STEP_UNDO_ACCEPTED:
			return UNDO_ACTIVE;
		default:
			return UNDO_NONE;
	}
}

static void
count_class(SagaState *state, uint8 undo_class, int32 by)
{
	if (undo_class == UNDO_AWAITED)
		state->undo_awaited += by;
	else if (undo_class == UNDO_NEEDED)
		state->undo_needed += by;
	else if (undo_class == UNDO_ACTIVE)
		state->undo_active += by;
}

/* ---- a heap of steps that may be undone, the newest on top ---- */

/* Steps of unknown outcome count as newer than all that are done. */
static int64
newness(const SagaState *state, int32 i)
{
	const SagaStep *step = &state->steps[i];

	if (step->happened || step->continued)
		return step->done_at;
	return (INT64_C(1) << 32) + step->intent_at;
}

static void
heap_push(SagaState *state, int32 i)
{
	int32	   *heap;
	int32		at = state->undo_heap.n;

	machine_push(state, &state->undo_heap, i);
	heap = state->undo_heap.items;
	while (at > 0)
	{
		int32		up = (at - 1) / 2;

		if (newness(state, heap[up]) >= newness(state, i))
			break;
		heap[at] = heap[up];
		at = up;
	}
	heap[at] = i;
}

static int32
heap_pop(SagaState *state)
{
	int32	   *heap = state->undo_heap.items;
	int32		top = heap[0];
	int32		n = --state->undo_heap.n;
	int32		last = heap[n];
	int32		at = 0;

	for (;;)
	{
		int32		child = 2 * at + 1;

		if (child >= n)
			break;
		if (child + 1 < n &&
			newness(state, heap[child + 1]) > newness(state, heap[child]))
			child++;
		if (newness(state, last) >= newness(state, heap[child]))
			break;
		heap[at] = heap[child];
		at = child;
	}
	heap[at] = last;
	return top;
}

/* ---- what stands in whose way ---- */

static inline bool
is_free(const SagaState *state, const SagaStep *step)
{
	return step->undo_wait == 0 && !state->runs[step->run].undo_shut;
}

static inline bool
may_start(const SagaState *state, const SagaStep *step)
{
	return step->undo_class == UNDO_NEEDED &&
		(state->graph->undo_order == SAGA_UNDO_PARALLEL ||
		 is_free(state, step));
}

/* Which take of a node did the step follow? */
static SagaStep *
take_before(SagaState *state, const SagaStep *step, int32 node)
{
	SagaStep   *take = &state->steps[sibling(state, step->run, node)];

	while (take->made_at > step->made_at && take->replaces >= 0 &&
		   state->steps[take->replaces].run == step->run)
		take = &state->steps[take->replaces];
	return take;
}

/* Let the undo of a body begin with the steps that nothing follows. */
static void
open_run(SagaState *state, int32 run)
{
	SagaScopeRun *r = &state->runs[run];
	int32		n = state->graph->scopes[r->scope].nnodes;

	r->undo_shut = false;
	for (int32 k = 0; k < n; k++)
		for (int32 i = r->steps[k]; i >= 0 && state->steps[i].run == run;
			 i = state->steps[i].replaces)
			if (state->steps[i].undo_wait == 0)
				machine_push(state, &state->scratch, i);
}

/* All that followed the owner is clear: now its bodies. */
static void
open_bodies(SagaState *state, SagaStep *owner)
{
	bool		loop = node_of(state, owner)->kind == SAGA_NODE_LOOP;

	owner->undo_opened = true;
	for (int32 run = owner->first_run; run >= 0;
		 run = state->runs[run].previous)
	{
		/* an iteration comes after the ones before it, an element does not */
		if (!loop || run == owner->first_run)
			open_run(state, run);
		owner->undo_wait++;
	}
}

static void
lower_wait(SagaState *state, int32 i)
{
	SagaStep   *step = &state->steps[i];

	if (undoing(state, step) && --step->undo_wait == 0)
		machine_push(state, &state->scratch, i);
}

/* Nothing is left of the step: tell what it stood in the way of. */
static void
clear_step(SagaState *state, SagaStep *step)
{
	const SagaNode *node = node_of(state, step);
	SagaScopeRun *run = &state->runs[step->run];

	step->undo_class = UNDO_CLEAR;
	for (int32 i = 0; i < node->ndeps; i++)
		lower_wait(state, (int32) (take_before(state, step, node->deps[i]) -
								   state->steps));
	if (step->replaces >= 0)
		lower_wait(state, step->replaces);
	if (--run->undo_open > 0 || run->owner < 0 ||
		!undoing(state, &state->steps[run->owner]))
		return;
	if (run->previous >= 0 &&
		node_of(state, &state->steps[run->owner])->kind == SAGA_NODE_LOOP)
		open_run(state, run->previous);
	lower_wait(state, run->owner);
}

/* The steps on the scratch list may have become free. */
static void
free_steps(SagaState *state)
{
	while (state->scratch.n > 0)
	{
		int32		i = state->scratch.items[--state->scratch.n];
		SagaStep   *step = &state->steps[i];

		if (!is_free(state, step))
			continue;
		if (step->first_run >= 0 && !step->undo_opened)
		{
			open_bodies(state, step);
			continue;
		}
		if (step->undo_class == UNDO_NONE)
			clear_step(state, step);
		else if (step->undo_class == UNDO_NEEDED &&
				 state->graph->undo_order != SAGA_UNDO_PARALLEL)
			heap_push(state, i);
	}
}

/* After the UNDO record, and again when a log was folded. */
void
machine_undo_begin(Machine *m)
{
	SagaState  *state = m->state;

	state->undo_awaited = 0;
	state->undo_needed = 0;
	state->undo_active = 0;
	state->undo_heap.n = 0;
	state->scratch.n = 0;
	for (int32 i = 0; i < state->nruns; i++)
	{
		SagaScopeRun *run = &state->runs[i];

		run->undo_open = 0;
		run->undo_shut = run->owner >= 0 &&
			undoing(state, &state->steps[run->owner]);
	}
	for (int32 i = 0; i < state->nsteps; i++)
	{
		state->steps[i].undo_class = UNDO_NONE;
		state->steps[i].undo_wait = 0;
		state->steps[i].undo_opened = false;
	}
	for (int32 i = 0; i < state->nsteps; i++)
	{
		SagaStep   *step = &state->steps[i];
		const SagaNode *node = node_of(state, step);

		if (!undoing(state, step))
			continue;
		step->undo_class = classify(state, step);
		count_class(state, step->undo_class, 1);
		state->runs[step->run].undo_open++;
		for (int32 k = 0; k < node->ndeps; k++)
			take_before(state, step, node->deps[k])->undo_wait++;
		if (step->replaces >= 0)
			state->steps[step->replaces].undo_wait++;
	}
	for (int32 i = 0; i < state->nsteps; i++)
	{
		SagaStep   *step = &state->steps[i];

		if (!undoing(state, step))
			continue;
		if (step->undo_class == UNDO_NEEDED &&
			state->graph->undo_order == SAGA_UNDO_PARALLEL)
			heap_push(state, i);
		if (is_free(state, step))
			machine_push(state, &state->scratch, i);
	}
	free_steps(state);
	for (int32 i = 0; i < state->nsteps; i++)
		machine_undo_settle(m, i);
}

/* A record has changed the step.  A terminating saga undoes no more. */
void
machine_undo_touch(Machine *m, int32 i)
{
	SagaState  *state = m->state;
	SagaStep   *step = &state->steps[i];
	uint8		now = classify(state, step);

	if (state->terminating || !undoing(state, step))
		return;
	if (step->undo_class == UNDO_CLEAR && now != UNDO_NONE)
	{
		/* only by a local action whose outcome was read late */
		machine_undo_begin(m);
		return;
	}
	if (step->undo_class == now || step->undo_class == UNDO_CLEAR)
		return;
	count_class(state, step->undo_class, -1);
	count_class(state, now, 1);
	step->undo_class = now;
	if (may_start(state, step))
		heap_push(state, i);
	else if (now == UNDO_NONE && is_free(state, step))
	{
		machine_push(state, &state->scratch, i);
		free_steps(state);
	}
}

/*
 * An action whose answer nobody waits for any more (its retry was not yet due,
 * it was accepted for later, its worker was lost, the coordinator crashed) is
 * over, and the log says with how much certainty.
 */
void
machine_undo_settle(Machine *m, int32 i)
{
	SagaState  *state = m->state;
	SagaStep   *step = &state->steps[i];
	bool		local = !is_sent(state, step);
	SagaEval	eval;
	SagaRecord	record;

	if (!undoing(state, step) || step->claiming)
		return;

	/* an expression has no effect */
	if (step->in_flight && machine_op(state, step) == SAGA_OP_EVAL)
		machine_forget_call(m, i);
	if (step->status == SAGA_STEP_EVALUATING)
		machine_set_status(state, step, SAGA_STEP_IDLE);
	if (step->in_flight ||
		(step->status != SAGA_STEP_CALLING &&
		 step->status != SAGA_STEP_BACKOFF &&
		 step->status != SAGA_STEP_ACCEPTED))
		return;
	if (local && step->status == SAGA_STEP_CALLING)
		machine_set_status(state, step, SAGA_STEP_IDLE);	/* no record */
	else
	{
		record = machine_record(SAGA_RECORD_FAILED, i,
								machine_needs_eval(state, step, &eval) ?
								SAGA_OP_EVAL : SAGA_OP_ACTION);
		record.attempt = step->attempts;
		record.maybe = !local && (step->maybe || step->lost);
		record.answer = step->last_kind;
		if (step->status != SAGA_STEP_BACKOFF || step->lost ||
			record.answer == SAGA_ANSWER_DONE ||
			record.answer >= SAGA_ANSWER_REFUSED)
			record.answer = local ? SAGA_ANSWER_TRANSIENT : SAGA_ANSWER_UNKNOWN;
		machine_emit(m, &record);
	}
	machine_set_lost(state, step, false);
	machine_undo_touch(m, i);
}

static void
start_undo(Machine *m, int32 node)
{
	SagaState  *state = m->state;
	SagaStep   *step = &state->steps[node];
	SagaRecord	record;

	machine_set_lost(state, step, false);
	if (node_of(state, step)->compensation_local)
		machine_set_status(state, step, SAGA_STEP_UNDO_CALLING);
	else
	{
		record = machine_record(SAGA_RECORD_INTENT, node, SAGA_OP_UNDO);
		machine_emit(m, &record);
	}
	machine_call(m, node, SAGA_OP_UNDO);
	machine_undo_touch(m, node);
}

/* Start what may be undone now. */
void
machine_undo_advance(Machine *m)
{
	SagaState  *state = m->state;

	while (state->undo_heap.n > 0)
	{
		int32		node;

		if (state->graph->undo_order == SAGA_UNDO_REVERSE &&
			(state->undo_awaited > 0 || state->undo_active > 0))
			return;
		node = heap_pop(state);
		if (state->steps[node].undo_class == UNDO_NEEDED)
			start_undo(m, node);
	}
}

bool
machine_undo_finished(const SagaState *state)
{
	return state->undo_awaited == 0 && state->undo_needed == 0 &&
		state->undo_active == 0;
}
