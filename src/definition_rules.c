/*
 * definition_rules.c
 *		What a definition's nodes may do to each other: where a failure may go
 *		back to, where the pivot may stand.
 *
 * Called by definition.c, on kinds and order (saga_compile_failures) and on
 * the finished graph (saga_compile_rules).
 */
#include "postgres.h"

#include "compat.h"
#include "compile.h"

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

		if (!node->after_pivot)
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

void
saga_compile_rules(SagaCompile *c)
{
	check_pivot(c);
}
