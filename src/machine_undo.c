/*
 * machine_undo.c
 *		The order of the undo: which step is compensated when.
 *
 * Called by machine.c alone, in direction UNDO.  Keeps, beside the state's
 * lasting part, the class of every node and how many of its followers still
 * stand in its way, so that one answer costs O(log n), not a scan.  All of it
 * is ephemeral: machine_undo_begin() finds it again from the fold.
 *
 * A node is CLEAR when nothing of it or of what follows it is left.  Order
 * REVERSE also waits for that: completion times alone would do, were it not
 * for a crash that loses the record of a step but not that of the local step
 * after it, which then counts as the older one.
 */
#include "machine_private.h"

enum
{
	UNDO_NONE,					/* nothing to undo, but followers have */
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

/* ---- a heap of nodes that may be undone, the newest on top ---- */

/* Steps of unknown outcome count as newer than all that are done. */
static int64
newness(const SagaState *state, int32 node)
{
	const SagaStep *step = &state->steps[node];

	if (step->happened || step->continued)
		return step->done_at;
	return (INT64_C(1) << 32) + step->intent_at;
}

static void
heap_push(SagaState *state, int32 node)
{
	int32	   *heap = state->undo_heap;
	int32		at = state->nundo_heap;

	/* a node is pushed once, when it becomes both needed and unblocked */
	Assert(at < state->graph->nnodes);
	if (at >= state->graph->nnodes)
		return;
	state->nundo_heap++;
	while (at > 0)
	{
		int32		up = (at - 1) / 2;

		if (newness(state, heap[up]) >= newness(state, node))
			break;
		heap[at] = heap[up];
		at = up;
	}
	heap[at] = node;
}

static int32
heap_pop(SagaState *state)
{
	int32	   *heap = state->undo_heap;
	int32		top = heap[0];
	int32		n = --state->nundo_heap;
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

static inline bool
blocked(const SagaState *state, const SagaStep *step)
{
	return step->undo_wait > 0 &&
		state->graph->undo_order != SAGA_UNDO_PARALLEL;
}

/* The node is CLEAR; so may now be some of those it waited for. */
static void
clear_upwards(SagaState *state, int32 node)
{
	int32	   *stack = state->scratch;
	int32		n = 0;

	stack[n++] = node;
	while (n > 0)
	{
		const SagaNode *cleared = &state->graph->nodes[stack[--n]];

		for (int32 i = 0; i < cleared->ndeps; i++)
		{
			int32		up = cleared->deps[i];
			SagaStep   *step = &state->steps[up];

			if (--step->undo_wait > 0)
				continue;
			if (step->undo_class == UNDO_NONE)
			{
				step->undo_class = UNDO_CLEAR;
				stack[n++] = up;
			}
			else if (step->undo_class == UNDO_NEEDED &&
					 state->graph->undo_order != SAGA_UNDO_PARALLEL)
				heap_push(state, up);
		}
	}
}

/* After the UNDO record, and again when a log was folded. */
void
machine_undo_begin(Machine *m)
{
	SagaState  *state = m->state;
	const SagaGraph *graph = m->graph;

	state->undo_awaited = 0;
	state->undo_needed = 0;
	state->undo_active = 0;
	state->nundo_heap = 0;
	for (int32 k = graph->nnodes - 1; k >= 0; k--)
	{
		const SagaNode *node = &graph->nodes[graph->topo[k]];
		SagaStep   *step = &state->steps[graph->topo[k]];

		step->undo_wait = 0;
		for (int32 i = 0; i < node->nnext; i++)
			step->undo_wait +=
				state->steps[node->next[i]].undo_class != UNDO_CLEAR;
		step->undo_class = classify(state, step);
		if (step->undo_class == UNDO_NONE && step->undo_wait == 0)
			step->undo_class = UNDO_CLEAR;
		count_class(state, step->undo_class, 1);
		if (step->undo_class == UNDO_NEEDED && !blocked(state, step))
			heap_push(state, graph->topo[k]);
	}
	for (int32 i = 0; i < graph->nnodes; i++)
		machine_undo_settle(m, i);
}

/* A record has changed the node.  A terminating saga undoes no more. */
void
machine_undo_touch(Machine *m, int32 node)
{
	SagaState  *state = m->state;
	SagaStep   *step = &state->steps[node];
	uint8		now = classify(state, step);

	if (state->terminating)
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
	if (now == UNDO_NEEDED && !blocked(state, step))
		heap_push(state, node);
	else if (now == UNDO_NONE && step->undo_wait == 0)
	{
		step->undo_class = UNDO_CLEAR;
		clear_upwards(state, node);
	}
}

/*
 * An action whose answer nobody waits for any more (its retry was not yet due,
 * its worker was lost, the coordinator crashed) is over, and the log says with
 * how much certainty.
 */
void
machine_undo_settle(Machine *m, int32 node)
{
	SagaState  *state = m->state;
	SagaStep   *step = &state->steps[node];
	bool		local = is_local(state, step, false);
	SagaRecord	record;

	if (step->in_flight || step->claiming ||
		(step->status != SAGA_STEP_CALLING &&
		 step->status != SAGA_STEP_BACKOFF))
		return;
	if (local && step->status == SAGA_STEP_CALLING)
		machine_set_status(state, step, SAGA_STEP_IDLE);	/* no record */
	else
	{
		record = machine_record(SAGA_RECORD_FAILED, node, SAGA_OP_ACTION);
		record.attempt = step->attempts;
		record.maybe = !local && (step->maybe || step->lost);
		record.answer = step->last_kind;
		if (step->status == SAGA_STEP_CALLING || step->lost ||
			record.answer == SAGA_ANSWER_DONE ||
			record.answer == SAGA_ANSWER_REFUSED)
			record.answer = local ? SAGA_ANSWER_TRANSIENT : SAGA_ANSWER_UNKNOWN;
		machine_emit(m, &record);
	}
	step->lost = false;
	machine_undo_touch(m, node);
}

static void
start_undo(Machine *m, int32 node)
{
	SagaState  *state = m->state;
	SagaStep   *step = &state->steps[node];
	SagaRecord	record;

	step->lost = false;
	if (m->graph->nodes[node].compensation_local)
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

	while (state->nundo_heap > 0)
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
