/*
 * machine_scopes.c
 *		The runs of nodes: the first state, what a body's element or iteration
 *		adds to it, when such a run is over, and beginning anew.
 *
 * Called by machine_fold.c: all here is part of the fold of the log, and must
 * not depend on an ephemeral field.  Adding runs moves state->steps and
 * state->runs: a pointer into them does not outlive a record of the kinds
 * EXPANDED, ITERATION and RESTARTED.
 */
#include "machine_private.h"

/* ------------------------------------------------------- arrays */

/* Room for 'more' elements beyond the n that there are. */
static void *
enlarge(SagaState *state, void *old, int32 n, int32 *max, int32 more,
		size_t size)
{
	void	   *new;

	if (n + more <= *max)
		return old;
	*max = Max(n + more, 2 * n);
	new = state->arena->alloc(state->arena, size * (size_t) *max);
	if (n > 0)
		memcpy(new, old, size * (size_t) n);
	return new;
}

void
machine_push(SagaState *state, SagaSteps *list, int32 step)
{
	if (list->n == list->max)
		list->items = enlarge(state, list->items, list->n, &list->max, 8,
							  sizeof(int32));
	list->items[list->n++] = step;
}

/* ------------------------------------------------------- making runs */

/*
 * A new run of the node.  A root waits for one thing: that its scope run is
 * started.
 */
static void
init_step(SagaState *state, int32 i, int32 node, int32 run, int32 replaces)
{
	SagaStep   *step = &state->steps[i];

	memset(step, 0, sizeof(SagaStep));
	step->node = node;
	step->run = run;
	step->replaces = replaces;
	step->retake = replaces >= 0 ? state->steps[replaces].retake + 1 : 0;
	step->made_at = state->seq + 1;
	step->first_run = -1;
	step->unmet = Max(state->graph->nodes[node].ndeps, 1);
}

size_t
saga_machine_size(const SagaGraph *graph)
{
	int32		n = graph->nscopes > 0 ? graph->scopes[0].nnodes : 0;

	return sizeof(SagaState) + sizeof(SagaArena) + sizeof(SagaScopeRun) +
		(size_t) n * (sizeof(SagaStep) + 2 * sizeof(int32));
}

SagaState *
saga_machine_create(const SagaGraph *graph, SagaTime deadline,
					SagaArena *arena)
{
	SagaState  *state = arena->alloc(arena, saga_machine_size(graph));
	int32		n = graph->nscopes > 0 ? graph->scopes[0].nnodes : 0;

	state->graph = graph;
	state->state = SAGA_PENDING;
	state->failed_node = SAGA_NO_NODE;
	state->stuck_node = SAGA_NO_NODE;
	state->back_to = SAGA_NO_NODE;
	state->deadline = deadline;
	state->open = n;
	state->due_min = SAGA_NEVER;

	/* one allocation, the most aligned parts first */
	state->steps = (SagaStep *) (state + 1);
	state->arena = (SagaArena *) (state->steps + n);
	*state->arena = *arena;
	state->runs = (SagaScopeRun *) (state->arena + 1);
	state->nruns = state->maxruns = 1;
	state->nsteps = state->maxsteps = n;
	state->runs[0].owner = -1;
	state->runs[0].previous = -1;
	state->runs[0].open = n;
	state->runs[0].steps = (int32 *) (state->runs + 1);
	state->ready.items = state->runs[0].steps + n;
	state->ready.max = n;
	state->seq = -1;			/* what is made now is of no record */
	for (int32 i = 0; i < n; i++)
	{
		init_step(state, i, graph->scopes[0].first + i, 0, -1);
		state->runs[0].steps[i] = i;
	}
	state->seq = 0;
	return state;
}

/* ------------------------------------------------------- their progress */

/* One thing less that the step waits for. */
void
machine_meet(SagaState *state, int32 step)
{
	if (--state->steps[step].unmet == 0 &&
		state->steps[step].status == SAGA_STEP_IDLE)
		machine_push(state, &state->ready, step);
}

void
machine_start_run(SagaState *state, int32 run)
{
	SagaScopeRun *r = &state->runs[run];
	const SagaScope *scope;

	r->started = true;
	if (state->graph->nscopes == 0)
		return;
	scope = &state->graph->scopes[r->scope];
	for (int32 i = 0; i < scope->nnodes; i++)
		if (state->graph->nodes[scope->first + i].ndeps == 0)
			machine_meet(state, r->steps[i]);
}
