/*
 * definition_rules.c
 *		What a definition's nodes may do to each other: where a failure may go
 *		back to, where the pivot may stand, what two-phase commit can carry.
 *
 * Called by definition.c, on kinds and order (saga_compile_failures) and on
 * the finished graph (saga_compile_rules).
 */
#include "postgres.h"

#include "compat.h"
#include "compile.h"

bool
saga_compile_after_pivot(const SagaCompile *c, int node)
{
	const SagaGraph *graph = c->def->graph;

	for (; node >= 0; node = graph->scopes[c->nodes[node].scope].owner)
		if (graph->nodes[node].after_pivot)
			return true;
	return false;
}

/* ---- failures ---- */

/* The save-point a failure of the node goes back to; NO_NODE with a fault. */
static int
find_savepoint(SagaCompile *c, int i, const char *name)
{
	const SagaGraph *graph = c->def->graph;
	const char *step = graph->nodes[i].name;
	int			savepoint = saga_definition_node(c->def, name);
	int			lifted;

	if (savepoint == SAGA_NO_NODE)
	{
		saga_fault(c->faults, step,
				   "Put saga.savepoint_step() where the saga is to come back to.",
				   "on_failure: save-point \"%s\" does not exist", name);
		return SAGA_NO_NODE;
	}
	if (graph->nodes[savepoint].kind != SAGA_NODE_SAVEPOINT)
	{
		saga_fault(c->faults, step,
				   "Put saga.savepoint_step() where the saga is to come back to.",
				   "on_failure: step \"%s\" is no save-point", name);
		return SAGA_NO_NODE;
	}
	if (c->cyclic)
		return savepoint;

	/* whenever the step runs, the save-point must have been passed */
	lifted = saga_compile_lift(c, i, c->nodes[savepoint].scope);
	if (lifted < 0 || !saga_compile_comes_before(c, savepoint, lifted) ||
		!saga_compile_covers(c, savepoint, lifted))
	{
		saga_fault(c->faults, step,
				   "Go back to a save-point before the step, not in a loop or a case that the step is not in.",
				   "on_failure: save-point \"%s\" does not always come before the step",
				   name);
		return SAGA_NO_NODE;
	}
	return savepoint;
}

void
saga_compile_failures(SagaCompile *c)
{
	for (int i = 0; i < c->nnodes; i++)
	{
		SagaNode   *node = &c->def->graph->nodes[i];
		const char *failure = c->nodes[i].on_failure;

		if (failure == NULL)
			continue;
		if (strncmp(failure, "goto:", 5) != 0)
		{
			node->on_failure = strcmp(failure, "continue") == 0 ? SAGA_FAILURE_CONTINUE :
				strcmp(failure, "stuck") == 0 ? SAGA_FAILURE_STUCK :
				SAGA_FAILURE_COMPENSATE;
			continue;
		}
		node->on_failure = SAGA_FAILURE_GOTO;
		node->savepoint = find_savepoint(c, i, failure + 5);
	}
}

/* ---- the pivot ---- */

static void
check_pivot(SagaCompile *c)
{
	const SagaGraph *graph = c->def->graph;
	const SagaNode *pivot;

	for (int i = 0; i < graph->nnodes; i++)
	{
		const char *where = NULL;

		pivot = &graph->nodes[i];
		if (!pivot->pivot)
			continue;
		if (c->nodes[i].scope > 0 && !c->nodes[i].element)
			where = "in a loop";
		else if (c->nodes[i].branch >= 0)
			where = "in a case of a branch";
		else if (pivot->has_condition && saga_json_get(c->nodes[i].json, "condition") == NULL)
			where = "in a group with a condition";
		if (where != NULL)
			saga_fault(c->faults, pivot->name,
					   "There must be one moment from which the saga only goes forward: make a step that always runs, and once, the pivot.",
					   "the pivot is %s", where);
		if (pivot->on_failure == SAGA_FAILURE_CONTINUE)
			saga_fault(c->faults, pivot->name,
					   "After the pivot the saga counts on what the pivot did: use 'compensate' or 'stuck'.",
					   "the pivot has on_failure => 'continue'");
	}
	for (int i = 0; i < graph->nnodes; i++)
	{
		const SagaNode *node = &graph->nodes[i];
		JsonbValue *retriable = saga_json_get(c->nodes[i].json, "retriable");

		if (!saga_compile_after_pivot(c, i))
			continue;
		if (retriable != NULL && retriable->type == jbvBool &&
			!retriable->val.boolean)
			saga_fault(c->faults, node->name,
					   "After the pivot there is no way back: put the step before it, or make it one that can be repeated until it succeeds.",
					   "the step comes after the pivot and is not retriable");
		if (node->on_failure == SAGA_FAILURE_GOTO)
			saga_fault(c->faults, node->name,
					   "After the pivot nothing is undone: use 'continue' or 'stuck'.",
					   "the step comes after the pivot and goes back to a save-point");
	}
}

/* ---- two-phase commit ---- */

/* Why a node cannot be a part of one atomic commit, or NULL. */
static const char *
two_phase_problem(const SagaDefinition *def, int i)
{
	const SagaCall *action = def->action[i];

	switch (def->graph->nodes[i].kind)
	{
		case SAGA_NODE_SLEEP:
			return "sleeps";
		case SAGA_NODE_SIGNAL:
			return "waits for a signal";
		case SAGA_NODE_STEP:
			if (action->kind == SAGA_CALL_CHILD)
				return "runs another saga";
			if (action->kind == SAGA_CALL_HTTP)
				return "calls an HTTP service";
			if (action->callback)
				return "is answered later";
			return NULL;
		default:
			return NULL;
	}
}

/* Results of participants are not known before all have prepared. */
static void
check_remote_results(SagaCompile *c, int i, const SagaCall *call)
{
	const SagaDefinition *def = c->def;

	if (call == NULL || call->tmpl == NULL)
		return;
	for (int j = 0; j < call->tmpl->nparams; j++)
	{
		const SagaParam *param = &call->tmpl->params[j];
		int			from = param->index;

		if (param->scope != SAGA_PARAM_STEP)
			continue;
		if (def->graph->nodes[from].kind == SAGA_NODE_EACH)
			from = def->graph->scopes[def->graph->nodes[from].body].first;
		if (from != i && def->action[from] != NULL &&
			def->action[from]->server != NULL)
			saga_fault(c->faults, def->graph->nodes[i].name,
					   "With protocol 'two_phase' all participants act at the same time: use the input, or protocol 'saga'.",
					   "%s is a result of another participant", param->name);
	}
}

static void
check_two_phase(SagaCompile *c)
{
	const SagaDefinition *def = c->def;

	for (int i = 0; i < def->graph->nnodes; i++)
	{
		const char *problem = two_phase_problem(def, i);

		if (problem != NULL)
			saga_fault(c->faults, def->graph->nodes[i].name,
					   "Use protocol 'saga'.",
					   "the step %s, which protocol 'two_phase' cannot do",
					   problem);
		check_remote_results(c, i, def->action[i]);
		check_remote_results(c, i, def->condition[i]);
		check_remote_results(c, i, def->control[i]);
	}
}

void
saga_compile_rules(SagaCompile *c)
{
	check_pivot(c);
	if (c->def->protocols & (1 << SAGA_PROTOCOL_TWO_PHASE))
		check_two_phase(c);
}
