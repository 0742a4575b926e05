/*
 * definition_order.c
 *		The nodes of a definition and what each of them waits for.
 *
 * Called by definition.c alone.  Numbers the nodes as they are listed, and
 * turns the order rule (a node waits for the whole of what is listed before
 * it, "after" replaces that) into edges to direct predecessors: a sequence of
 * n steps has n - 1 of them.
 */
#include "postgres.h"

#include "miscadmin.h"

#include "compat.h"
#include "compile.h"

const char *
saga_node_kind(JsonbContainer *json)
{
	char	   *kind = saga_json_text(json, "kind");

	return kind ? kind : "";
}

static bool
is_group(JsonbContainer *json)
{
	return strcmp(saga_node_kind(json), "parallel") == 0;
}

/* The i-th node of an array of nodes, or NULL. */
static JsonbContainer *
node_at(JsonbContainer *array, uint32 i)
{
	JsonbValue *v = getIthJsonbValueFromContainer(array, i);

	return v->type == jbvBinary ? v->val.binary.data : NULL;
}

static void
add_node(SagaCompile *c, JsonbContainer *json)
{
	if (c->nnodes == c->maxnodes)
	{
		int			max = Max(16, 2 * c->maxnodes);
		JsonbContainer **grown = palloc(max * sizeof(JsonbContainer *));

		if (c->nnodes > 0)
			memcpy(grown, c->json, c->nnodes * sizeof(JsonbContainer *));
		c->json = grown;
		c->maxnodes = max;
	}
	c->json[c->nnodes++] = json;
}

/* First walk: number the nodes; order_nodes() repeats it in the same order. */
static void
collect_nodes(SagaCompile *c, JsonbContainer *array)
{
	check_stack_depth();
	for (uint32 i = 0; i < JsonContainerSize(array); i++)
	{
		JsonbContainer *json = node_at(array, i);
		JsonbContainer *members;

		if (json == NULL)
			continue;
		if (!is_group(json))
			add_node(c, json);
		else if ((members = saga_json_container(json, "nodes")) != NULL)
			collect_nodes(c, members);
	}
}

static int
compare_names(const void *a, const void *b, void *arg)
{
	const SagaNode *nodes = arg;

	return strcmp(nodes[*(const int32 *) a].name, nodes[*(const int32 *) b].name);
}

/* The graph's nodes and names, and the index saga_definition_node() searches. */
static void
name_nodes(SagaCompile *c)
{
	SagaDefinition *def = c->def;
	SagaGraph  *graph = def->graph;

	graph->nnodes = c->nnodes;
	graph->nodes = palloc0(Max(c->nnodes, 1) * sizeof(SagaNode));
	def->nnames = c->nnodes;
	def->by_name = palloc(Max(c->nnodes, 1) * sizeof(int32));
	for (int i = 0; i < c->nnodes; i++)
	{
		char	   *name = saga_json_text(c->json[i], "name");

		graph->nodes[i].name = name ? name : "";
		def->by_name[i] = i;
	}
	qsort_arg(def->by_name, c->nnodes, sizeof(int32), compare_names,
			  graph->nodes);
	for (int i = 1; i < c->nnodes; i++)
	{
		const char *name = graph->nodes[def->by_name[i]].name;

		if (name[0] != '\0' &&
			strcmp(name, graph->nodes[def->by_name[i - 1]].name) == 0)
			saga_fault(c->faults, name, "Give every step a name of its own.",
					   "more than one step has this name");
	}
}

static List *
resolve_after(SagaCompile *c, JsonbContainer *json, const char *step)
{
	JsonbContainer *array = saga_json_container(json, "after");
	List	   *deps = NIL;

	for (uint32 i = 0; array != NULL && i < JsonContainerSize(array); i++)
	{
		JsonbValue *v = getIthJsonbValueFromContainer(array, i);
		char	   *name;
		int			node;

		if (v->type != jbvString)
			continue;
		name = pnstrdup(v->val.string.val, v->val.string.len);
		node = saga_definition_node(c->def, name);
		if (node == SAGA_NO_NODE)
			saga_fault(c->faults, step,
					   "List names of other steps of this definition; '{}' means: at once.",
					   "after names step \"%s\", which does not exist", name);
		else
			deps = list_append_unique_int(deps, node);
	}
	return deps;
}

/*
 * Second walk.  'next' is the number of the next node, 'wait' what a node
 * waits for that says nothing else.
 */
static void
order_nodes(SagaCompile *c, JsonbContainer *array, int *next, List *wait)
{
	for (uint32 i = 0; i < JsonContainerSize(array); i++)
	{
		JsonbContainer *json = node_at(array, i);
		JsonbContainer *members;
		List	   *deps = wait;

		if (json == NULL)
			continue;
		if (saga_json_get(json, "after") != NULL)
			deps = resolve_after(c, json, is_group(json) ? NULL
								 : c->def->graph->nodes[*next].name);
		if (!is_group(json))
			c->deps[(*next)++] = deps;
		else if ((members = saga_json_container(json, "nodes")) != NULL)
			order_nodes(c, members, next, deps);
	}
}

/* The top level, where one element waits for all that are listed before it. */
static void
order_sequence(SagaCompile *c, JsonbContainer *steps)
{
	int			next = 0;

	for (uint32 i = 0; i < JsonContainerSize(steps); i++)
	{
		JsonbContainer *json = node_at(steps, i);
		JsonbContainer *members;
		List	   *deps = NIL;
		int			first = next;
		ListCell   *lc;

		if (json == NULL)
			continue;
		if (saga_json_get(json, "after") != NULL)
			deps = resolve_after(c, json, is_group(json) ? NULL
								 : c->def->graph->nodes[next].name);
		else
		{
			/* of all before, those that nothing before waits for */
			for (int node = 0; node < first; node++)
				if (!c->has_next[node])
					deps = lappend_int(deps, node);
		}
		if (!is_group(json))
			c->deps[next++] = deps;
		else if ((members = saga_json_container(json, "nodes")) != NULL)
			order_nodes(c, members, &next, deps);

		for (int node = first; node < next; node++)
			foreach(lc, c->deps[node])
				c->has_next[lfirst_int(lc)] = true;
	}
	Assert(next == c->nnodes);
}

typedef enum Reach
{
	REACH_UNSEEN,
	REACH_OPEN,					/* on the path that is being followed */
	REACH_NEVER,				/* on a cycle, or waits for one */
	REACH_OK,
} Reach;

/* Depth first over what a node waits for; fills before[]. */
static void
find_predecessors(SagaCompile *c, int node, Reach *reach)
{
	Reach		result = REACH_OK;
	ListCell   *lc;

	check_stack_depth();
	reach[node] = REACH_OPEN;
	foreach(lc, c->deps[node])
	{
		int			dep = lfirst_int(lc);

		if (reach[dep] == REACH_UNSEEN)
			find_predecessors(c, dep, reach);
		if (reach[dep] != REACH_OK)
			result = REACH_NEVER;
		for (int w = 0; w < c->words; w++)
			c->before[node][w] |= c->before[dep][w];
		c->before[node][dep / 64] |= UINT64_C(1) << (dep % 64);
	}
	reach[node] = result;
}

/*
 * Tell those that are on a cycle from those that only wait for one: peel off,
 * from the end, what no unreachable node waits for.
 */
static void
report_cycles(SagaCompile *c, const Reach *reach)
{
	int		   *waiting = palloc0(c->nnodes * sizeof(int));
	bool	   *peeled = palloc0(c->nnodes * sizeof(bool));
	List	   *queue = NIL;
	ListCell   *lc;

	for (int i = 0; i < c->nnodes; i++)
		if (reach[i] == REACH_NEVER)
			foreach(lc, c->deps[i])
				waiting[lfirst_int(lc)]++;
	for (int i = 0; i < c->nnodes; i++)
		if (reach[i] == REACH_NEVER && waiting[i] == 0)
			queue = lappend_int(queue, i);
	while (queue != NIL)
	{
		int			node = llast_int(queue);

		queue = list_delete_last(queue);
		peeled[node] = true;
		foreach(lc, c->deps[node])
		{
			int			dep = lfirst_int(lc);

			if (--waiting[dep] == 0 && reach[dep] == REACH_NEVER)
				queue = lappend_int(queue, dep);
		}
	}

	for (int i = 0; i < c->nnodes; i++)
	{
		const char *name = c->def->graph->nodes[i].name;

		if (reach[i] != REACH_NEVER)
			continue;
		if (peeled[i])
			saga_fault(c->faults, name, "Break the cycle it waits for.",
					   "the step is never reached: it waits for steps on a cycle");
		else
			saga_fault(c->faults, name,
					   "Remove one of the steps on the cycle from an \"after\".",
					   "the step waits for itself through a cycle");
	}
}

void
saga_compile_order(SagaCompile *c, JsonbContainer *body)
{
	JsonbContainer *steps = saga_json_container(body, "steps");
	MemoryContext old = MemoryContextSwitchTo(c->scratch);
	Reach	   *reach;

	if (steps != NULL && JsonContainerIsArray(steps))
		collect_nodes(c, steps);
	MemoryContextSwitchTo(old);
	name_nodes(c);
	if (c->nnodes == 0)
		return;

	MemoryContextSwitchTo(c->scratch);
	c->words = (c->nnodes + 63) / 64;
	c->deps = palloc0(c->nnodes * sizeof(List *));
	c->before = palloc(c->nnodes * sizeof(uint64 *));
	for (int i = 0; i < c->nnodes; i++)
		c->before[i] = palloc0(c->words * sizeof(uint64));
	c->has_next = palloc0(c->nnodes * sizeof(bool));
	order_sequence(c, steps);

	reach = palloc0(c->nnodes * sizeof(Reach));
	for (int i = 0; i < c->nnodes; i++)
		if (reach[i] == REACH_UNSEEN)
			find_predecessors(c, i, reach);
	for (int i = 0; i < c->nnodes; i++)
		if (reach[i] != REACH_OK)
			c->cyclic = true;
	if (c->cyclic)
		report_cycles(c, reach);
	MemoryContextSwitchTo(old);
}
