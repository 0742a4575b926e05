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
void *
machine_enlarge(SagaState *state, void *old, int32 n, int32 *max, int32 more,
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
		list->items = machine_enlarge(state, list->items, list->n,
									  &list->max, 8, sizeof(int32));
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

/*
 * The scope runs number .. number + n - 1 of the owner's body.  What runs in
 * one is a later take of what ran in that of an earlier take of the owner.
 */
static void
add_runs(SagaState *state, int32 owner, int32 number, int32 n)
{
	int32		body = node_of(state, &state->steps[owner])->body;
	const SagaScope *scope = &state->graph->scopes[body];
	int32	   *pool;

	if (n == 0)
		return;
	state->steps = machine_enlarge(state, state->steps, state->nsteps,
								   &state->maxsteps, n * scope->nnodes,
								   sizeof(SagaStep));
	state->runs = machine_enlarge(state, state->runs, state->nruns,
								  &state->maxruns, n, sizeof(SagaScopeRun));
	pool = state->arena->alloc(state->arena, sizeof(int32) *
							   (size_t) n * (size_t) scope->nnodes);
	for (int32 k = 0; k < n; k++)
	{
		int32		r = state->nruns++;
		SagaScopeRun *run = &state->runs[r];
		int32		before = machine_run_by_number(state,
											   state->steps[owner].replaces,
											   number + k);

		memset(run, 0, sizeof(*run));
		run->scope = body;
		run->owner = owner;
		run->number = number + k;
		run->previous = state->steps[owner].first_run;
		run->open = scope->nnodes;
		run->steps = pool;
		pool += scope->nnodes;
		state->steps[owner].first_run = r;
		for (int32 j = 0; j < scope->nnodes; j++)
		{
			run->steps[j] = state->nsteps++;
			init_step(state, run->steps[j], scope->first + j, r,
					  before < 0 ? -1 : state->runs[before].steps[j]);
		}
	}
	state->open += n * scope->nnodes;
}

/* ------------------------------------------------------- their progress */

/* One thing less that the step waits for. */
void
machine_meet(SagaState *state, int32 i)
{
	SagaStep   *step = &state->steps[i];

	if (step->unmet > 1)
	{
		step->unmet--;
		return;
	}
	machine_count(state, step, -1);
	step->unmet = 0;
	machine_count(state, step, 1);
	if (step->status != SAGA_STEP_IDLE)
		return;
	machine_push(state, &state->ready, i);
	if (node_of(state, step)->after_pivot &&
		pivot_step(state)->status == SAGA_STEP_NOT_TAKEN)
		state->past_pivot = true;
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

/* All of a body's run is over. */
static void
run_is_over(SagaState *state, int32 run)
{
	int32		owner = state->runs[run].owner;
	SagaStep   *step = &state->steps[owner];
	const SagaNode *node = node_of(state, step);

	state->runs[run].started = true;
	if (--step->runs_open == 0)
		machine_push(state, &state->ready, owner);
	else if (node->max_parallel > 0)
	{
		/* as many as are over, and max_parallel more, have been started */
		int32		over = step->value - step->runs_open;
		int32		first = step->first_run - step->value + 1;

		for (int32 k = over + node->max_parallel - 1; k < step->value; k++)
			if (!state->runs[first + k].started)
			{
				machine_start_run(state, first + k);
				break;
			}
	}
}

/* Those that wait for the step need wait no longer. */
void
machine_settle(SagaState *state, SagaStep *step)
{
	const SagaNode *node = node_of(state, step);

	if (step->settled)
		return;
	step->settled = true;

	/* a local outcome can outlive, in a crash, the record that started it */
	if (!state->runs[step->run].started)
		machine_start_run(state, step->run);
	for (int32 i = 0; i < node->nnext; i++)
		machine_meet(state, sibling(state, step->run, node->next[i]));
	if (--state->runs[step->run].open == 0 &&
		state->runs[step->run].owner >= 0)
		run_is_over(state, step->run);
}

/* ------------------------------------------------------- choosing */

/* Is the node in a case of the branch, and not in this one? */
static bool
in_other_case(const SagaGraph *graph, int32 node, int32 branch, int32 taken)
{
	while (graph->nodes[node].branch >= 0)
	{
		if (graph->nodes[node].branch == branch)
			return graph->nodes[node].branch_case != taken;
		node = graph->nodes[node].branch;
	}
	return false;
}

/* Pass over all cases but one: all of them before anything follows. */
static void
take_case(SagaState *state, SagaStep *branch, int32 taken)
{
	const SagaScopeRun *run = &state->runs[branch->run];
	const SagaScope *scope = &state->graph->scopes[run->scope];

	for (int32 pass = 0; pass < 2; pass++)
		for (int32 k = 0; k < scope->nnodes; k++)
		{
			SagaStep   *step = &state->steps[run->steps[k]];

			if (!in_other_case(state->graph, scope->first + k, branch->node,
							   taken))
				continue;
			if (pass == 0 && step->status == SAGA_STEP_IDLE)
				machine_set_status(state, step, SAGA_STEP_NOT_TAKEN);
			else if (pass == 1 && step->status == SAGA_STEP_NOT_TAKEN)
				machine_settle(state, step);
		}
}

/*
 * The step is over without having run: so are the cases of a branch.  Those
 * settle first, or what follows the branch would wait for them in vain.
 */
void
machine_pass_cases(SagaState *state, SagaStep *step)
{
	if (node_of(state, step)->kind == SAGA_NODE_BRANCH)
		take_case(state, step, -1);
}

/* May an expression of the step be answered now?  Which one? */
static bool
eval_is_open(const SagaState *state, const SagaStep *step, SagaEval *eval)
{
	if (step->unmet > 0 || step->replaced || undoing(state, step) ||
		!machine_needs_eval(state, step, eval))
		return false;
	return step->status == SAGA_STEP_IDLE ||
		step->status == SAGA_STEP_EVALUATING ||
		step->status == SAGA_STEP_BACKOFF ||
		(step->status == SAGA_STEP_SCOPED && step->runs_open == 0);
}

static void
begin_operation(SagaStep *step)
{
	step->attempts = 0;
	step->broken = 0;
	step->due = 0;
}

static bool
apply_chosen(SagaState *state, SagaStep *step, int64 value)
{
	SagaEval	eval;

	if (!eval_is_open(state, step, &eval))
		return false;
	if (eval == SAGA_EVAL_CONDITION && (value == 0 || value == 1))
	{
		begin_operation(step);
		if (value == 1)
		{
			step->evaluated = true;
			machine_set_status(state, step, SAGA_STEP_IDLE);
			machine_push(state, &state->ready, index_of(state, step));
			return true;
		}
		machine_set_status(state, step, SAGA_STEP_NOT_TAKEN);
		step->done_at = state->seq + 1;
		machine_pass_cases(state, step);
		machine_settle(state, step);
		return true;
	}
	if (eval == SAGA_EVAL_CASES && value >= -1 &&
		value < node_of(state, step)->ncases)
	{
		begin_operation(step);
		step->value = (int32) value;
		machine_set_status(state, step, SAGA_STEP_SCOPED);
		take_case(state, step, step->value);
		machine_push(state, &state->ready, index_of(state, step));
		return true;
	}
	return false;
}

/* ------------------------------------------------------- bodies */

static bool
apply_expanded(SagaState *state, SagaStep *step, int64 value)
{
	const SagaNode *node = node_of(state, step);
	int32		i = index_of(state, step);
	int32		first = state->nruns;
	int32		n = (int32) value;
	SagaEval	eval;

	if (!eval_is_open(state, step, &eval) || eval != SAGA_EVAL_ITEMS ||
		value < 0 || value > (SAGA_MAX_STEPS - state->nsteps) /
		state->graph->scopes[node->body].nnodes)
		return false;
	begin_operation(step);
	step->value = n;
	step->runs_open = n;
	machine_set_status(state, step, SAGA_STEP_SCOPED);
	add_runs(state, i, 0, n);
	if (n == 0)
		machine_push(state, &state->ready, i);
	if (node->max_parallel > 0)
		n = Min(n, node->max_parallel);
	for (int32 k = 0; k < n; k++)
		machine_start_run(state, first + k);
	return true;
}

static bool
apply_iteration(SagaState *state, SagaStep *step, int64 value)
{
	const SagaNode *node = node_of(state, step);

	if (node->kind != SAGA_NODE_LOOP || undoing(state, step) ||
		step->replaced || step->unmet > 0 || step->runs_open > 0 ||
		(node->has_condition && !step->evaluated) ||
		(step->status != SAGA_STEP_IDLE &&
		 step->status != SAGA_STEP_EVALUATING &&
		 step->status != SAGA_STEP_BACKOFF &&
		 step->status != SAGA_STEP_SCOPED) ||
		value != step->value ||
		(node->max_iterations > 0 && value >= node->max_iterations) ||
		state->graph->scopes[node->body].nnodes >
		SAGA_MAX_STEPS - state->nsteps)
		return false;
	begin_operation(step);
	step->value++;
	step->runs_open = 1;
	machine_set_status(state, step, SAGA_STEP_SCOPED);
	add_runs(state, index_of(state, step), (int32) value, 1);
	machine_start_run(state, state->nruns - 1);
	return true;
}

/* ------------------------------------------------------- beginning anew */

/* The node and, within its scope, all that follows it. */
void
machine_nodes_after(const SagaGraph *graph, int32 node, bool *after)
{
	memset(after, 0, sizeof(bool) * (size_t) graph->nnodes);
	after[node] = true;
	for (int32 k = 0; k < graph->nnodes; k++)
	{
		const SagaNode *n = &graph->nodes[graph->topo[k]];

		for (int32 i = 0; i < n->ndeps; i++)
			after[graph->topo[k]] |= after[n->deps[i]];
	}
}

/* Is the step one of those in the scope run, or in a body of one of them? */
bool
machine_is_after(const SagaState *state, int32 i, int32 run, const bool *after)
{
	const SagaStep *step = &state->steps[i];

	if (step->replaced)
		return false;
	while (step->run != run)
	{
		if (state->runs[step->run].owner < 0)
			return false;
		step = &state->steps[state->runs[step->run].owner];
	}
	return after[step->node];
}

/*
 * The steps that are to be undone so that the saga can go on from the
 * save-point.  False, nothing marked, if the failed one is none of them.
 */
bool
machine_mark_region(SagaState *state, int32 savepoint, int32 failed)
{
	bool		after[SAGA_MAX_NODES];
	const SagaStep *from = &state->steps[savepoint];

	machine_nodes_after(state->graph, from->node, after);
	after[from->node] = false;
	if (!machine_is_after(state, failed, from->run, after))
		return false;
	for (int32 i = 0; i < state->nsteps; i++)
		state->steps[i].region = machine_is_after(state, i, from->run, after);
	return true;
}

/* Is it passed over by a branch that is not itself begun anew? */
static bool
stays_passed_over(const SagaState *state, int32 run, int32 node,
				  const bool *after)
{
	const SagaNode *nodes = state->graph->nodes;

	for (int32 at = node; nodes[at].branch >= 0; at = nodes[at].branch)
	{
		int32		branch = nodes[at].branch;
		const SagaStep *step = &state->steps[sibling(state, run, branch)];

		if (after[branch])
			continue;
		if (step->status == SAGA_STEP_NOT_TAKEN || step->continued ||
			step->status == SAGA_STEP_SKIPPED ||
			((step->status == SAGA_STEP_SCOPED ||
			  step->status == SAGA_STEP_DONE) &&
			 step->value != nodes[at].branch_case))
			return true;
	}
	return false;
}

/*
 * The step is put aside as it is.  What may have happened of it still may, and
 * is undone with the saga.
 */
static void
put_aside(SagaState *state, SagaStep *step)
{
	machine_relieve(state, step);
	step->refused = false;
	step->region = false;
	step->replaced = true;
	switch (step->status)
	{
		case SAGA_STEP_CALLING:
		case SAGA_STEP_BACKOFF:
		case SAGA_STEP_STUCK:
		case SAGA_STEP_ACCEPTED:
			if (is_sent(state, step))
			{
				step->maybe |= step->status != SAGA_STEP_STUCK;
				step->status = SAGA_STEP_FAILED;
				break;
			}
			step->status = step->status == SAGA_STEP_CALLING ?
				SAGA_STEP_NOT_TAKEN : SAGA_STEP_FAILED;
			break;
		case SAGA_STEP_IDLE:
		case SAGA_STEP_EVALUATING:
		case SAGA_STEP_SLEEPING:
		case SAGA_STEP_AWAITING:
			step->status = SAGA_STEP_NOT_TAKEN;
			break;
		default:
			break;
	}
}

/* Can the step be begun anew, by the lasting state? */
bool
machine_may_restart(const SagaState *state, const SagaStep *step)
{
	const SagaNode *node = node_of(state, step);
	const SagaScopeRun *run = &state->runs[step->run];
	const SagaStep *pivot = pivot_step(state);
	static const bool none[SAGA_MAX_NODES];

	if (state->direction != SAGA_FORWARD || state->terminating ||
		step->replaced ||
		stays_passed_over(state, step->run, step->node, none) ||
		!(step->settled || step->status == SAGA_STEP_STUCK ||
		  step->status == SAGA_STEP_FAILED) ||
		state->graph->scopes[run->scope].nnodes >
		SAGA_MAX_STEPS - state->nsteps)
		return false;

	/* what followed the body, or came after it in a loop, has begun */
	for (int32 r = step->run; state->runs[r].owner >= 0;)
	{
		const SagaStep *owner = &state->steps[state->runs[r].owner];

		if (owner->settled || owner->status != SAGA_STEP_SCOPED ||
			(node_of(state, owner)->kind == SAGA_NODE_LOOP &&
			 owner->first_run != r))
			return false;
		r = owner->run;
	}
	return !(node->pivot || node->before_pivot) ||
		!(pivot->maybe || pivot->claiming || pivot->continued ||
		  state->past_pivot || pivot->status == SAGA_STEP_DONE ||
		  pivot->status == SAGA_STEP_SKIPPED);
}

/* New takes of all current steps in the scope run that are 'after'. */
static void
make_takes(SagaState *state, int32 r, const bool *after)
{
	SagaScopeRun *run = &state->runs[r];
	const SagaScope *scope = &state->graph->scopes[run->scope];
	int32		first = state->nsteps;
	bool		was_over = run->open == 0;

	state->steps = machine_enlarge(state, state->steps, state->nsteps,
								   &state->maxsteps, scope->nnodes,
								   sizeof(SagaStep));
	for (int32 k = 0; k < scope->nnodes; k++)
	{
		int32		node = scope->first + k;

		if (!after[node])
			continue;
		init_step(state, state->nsteps, node, r, run->steps[k]);
		run->steps[k] = state->nsteps++;
	}
	run->open = 0;
	for (int32 k = 0; k < scope->nnodes; k++)
		run->open += !state->steps[run->steps[k]].settled;
	if (was_over && run->open > 0 && run->owner >= 0)
		state->steps[run->owner].runs_open++;
	machine_recount(state);

	/* one too many, so that what waits for nothing becomes ready too */
	for (int32 i = first; i < state->nsteps; i++)
	{
		const SagaNode *node = node_of(state, &state->steps[i]);

		state->steps[i].unmet = 1;
		for (int32 k = 0; k < node->ndeps; k++)
			state->steps[i].unmet +=
				!state->steps[sibling(state, r, node->deps[k])].settled;
	}
	for (int32 i = first; i < state->nsteps; i++)
		machine_meet(state, i);
}

static bool
apply_restarted(SagaState *state, int32 i)
{
	SagaStep   *from = &state->steps[i];
	int32		run = from->run;
	const SagaScope *scope = &state->graph->scopes[state->runs[run].scope];
	bool		back = state->direction == SAGA_UNDO;
	bool		after[SAGA_MAX_NODES];

	if (back ? state->back_to != i : !machine_may_restart(state, from))
		return false;
	machine_nodes_after(state->graph, from->node, after);
	after[from->node] = !back;
	for (int32 k = 0; k < state->nsteps; k++)
		if (state->steps[k].claiming &&
			machine_is_after(state, k, run, after))
			return false;

	for (int32 k = 0; k < scope->nnodes; k++)
		if (after[scope->first + k] &&
			stays_passed_over(state, run, scope->first + k, after))
			after[scope->first + k] = false;
	if (state->graph->pivot >= 0 && after[state->graph->pivot] && run == 0)
	{
		state->past_pivot = false;
		state->pivot_intent = false;
	}
	if (back)
	{
		from->value++;
		state->direction = SAGA_FORWARD;
		state->cause = SAGA_CAUSE_NONE;
		state->failed_node = SAGA_NO_NODE;
		state->back_to = SAGA_NO_NODE;
	}
	for (int32 k = 0; k < state->nsteps; k++)
		state->steps[k].region = machine_is_after(state, k, run, after);
	for (int32 k = 0; k < state->nsteps; k++)
		if (state->steps[k].region)
			put_aside(state, &state->steps[k]);
	state->restarts++;
	make_takes(state, run, after);
	return true;
}

/* ------------------------------------------------------- by kind */

bool
machine_apply_scope(SagaState *state, const SagaRecord *record)
{
	SagaStep   *step;

	if (!is_step(state, record->node))
		return false;
	step = &state->steps[record->node];
	switch (record->kind)
	{
		case SAGA_RECORD_CHOSEN:
			return apply_chosen(state, step, record->value);
		case SAGA_RECORD_EXPANDED:
			return apply_expanded(state, step, record->value);
		case SAGA_RECORD_ITERATION:
			return apply_iteration(state, step, record->value);
		default:
			return apply_restarted(state, record->node);
	}
}
