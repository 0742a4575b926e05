/*
 * definition_order.c
 *		The nodes of a definition, the scopes they are in, and what each of
 *		them waits for.
 *
 * Called by definition.c alone.  Numbers the nodes scope by scope, as they are
 * listed, and turns the order rule (a node waits for the whole of what is
 * listed before it, "after" replaces that) into edges to direct predecessors:
 * a sequence of n steps has n - 1 of them.
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
is_kind(JsonbContainer *json, const char *kind)
{
	return strcmp(saga_node_kind(json), kind) == 0;
}

/* The array of nodes under a key, or NULL. */
static JsonbContainer *
nodes_of(JsonbContainer *json, const char *key)
{
	JsonbContainer *array = saga_json_container(json, key);

	return array != NULL && JsonContainerIsArray(array) ? array : NULL;
}

/* The i-th node of an array of nodes, or NULL. */
static JsonbContainer *
node_at(JsonbContainer *array, uint32 i)
{
	JsonbValue *v = getIthJsonbValueFromContainer(array, i);

	return v->type == jbvBinary ? v->val.binary.data : NULL;
}

/* ---- first walk: number the nodes ---- */

/* What nodes have from what they are in. */
typedef struct Inherited
{
	int			branch;			/* innermost branch of the scope, and case */
	int			branch_case;
	const char *on_failure;		/* or NULL */
	List	   *conditions;		/* of the parallel groups around them */
} Inherited;

static SagaCompileNode *
add_node(SagaCompile *c, JsonbContainer *json, const Inherited *in)
{
	SagaCompileNode *node;
	char	   *failure = saga_json_text(json, "on_failure");

	if (c->nnodes == c->maxnodes)
	{
		int			max = Max(16, 2 * c->maxnodes);
		SagaCompileNode *grown = palloc0(max * sizeof(SagaCompileNode));

		if (c->nnodes > 0)
			memcpy(grown, c->nodes, c->nnodes * sizeof(SagaCompileNode));
		c->nodes = grown;
		c->maxnodes = max;
	}
	node = &c->nodes[c->nnodes++];
	node->json = json;
	node->scope = list_length(c->scopes) - 1;
	node->branch = in->branch;
	node->branch_case = in->branch_case;
	node->on_failure = failure ? failure : in->on_failure;
	node->conditions = in->conditions;
	node->body = -1;
	return node;
}

/* Its number is known when those before it have been numbered. */
static void
queue_body(SagaCompile *c, JsonbContainer *json, const char *on_failure)
{
	SagaCompileScope *scope = palloc0(sizeof(SagaCompileScope));

	scope->json = json;
	scope->owner = c->nnodes - 1;
	scope->on_failure = on_failure;
	c->queue = lappend(c->queue, scope);
}

static void
collect_nodes(SagaCompile *c, JsonbContainer *array, const Inherited *in)
{
	check_stack_depth();
	for (uint32 i = 0; array != NULL && i < JsonContainerSize(array); i++)
	{
		JsonbContainer *json = node_at(array, i);
		JsonbContainer *cases;
		SagaCompileNode *node;
		Inherited	inner = *in;

		if (json == NULL)
			continue;
		if (is_kind(json, "parallel"))
		{
			char	   *failure = saga_json_text(json, "on_failure");
			char	   *condition = saga_json_text(json, "condition");

			if (failure != NULL)
				inner.on_failure = failure;
			if (condition != NULL)
				inner.conditions = lappend(list_copy(in->conditions), condition);
			collect_nodes(c, nodes_of(json, "nodes"), &inner);
			continue;
		}
		node = add_node(c, json, in);
		inner.on_failure = node->on_failure;
		inner.conditions = NIL;
		if (is_kind(json, "loop") || saga_json_get(json, "for_each") != NULL)
			queue_body(c, json, node->on_failure);
		cases = is_kind(json, "branch") ? nodes_of(json, "cases") : NULL;
		inner.branch = c->nnodes - 1;
		for (uint32 k = 0; cases != NULL && k < JsonContainerSize(cases); k++)
		{
			JsonbContainer *one = node_at(cases, k);

			inner.branch_case = k;
			if (one != NULL)
				collect_nodes(c, nodes_of(one, "steps"), &inner);
		}
	}
}

/*
 * Scope after scope, so that the nodes of one have consecutive numbers and a
 * body has a higher one than what it is in.
 */
static void
collect_scopes(SagaCompile *c, JsonbContainer *steps)
{
	SagaCompileScope *scope = palloc0(sizeof(SagaCompileScope));
	Inherited	in = {.branch = -1};

	scope->owner = -1;
	scope->json = steps;
	c->scopes = list_make1(scope);
	collect_nodes(c, steps, &in);
	scope->nnodes = c->nnodes;
	while (c->queue != NIL)
	{
		scope = linitial(c->queue);
		c->queue = list_delete_first(c->queue);
		scope->first = c->nnodes;
		c->nodes[scope->owner].body = list_length(c->scopes);
		c->scopes = lappend(c->scopes, scope);
		in.on_failure = scope->on_failure;
		if (is_kind(scope->json, "loop"))
			collect_nodes(c, nodes_of(scope->json, "steps"), &in);
		else
			add_node(c, scope->json, &in)->element = true;
		scope->nnodes = c->nnodes - scope->first;
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
	def->by_name = palloc(Max(c->nnodes, 1) * sizeof(int32));
	for (int i = 0; i < c->nnodes; i++)
	{
		char	   *name = saga_json_text(c->nodes[i].json, "name");

		graph->nodes[i].name = name ? name : "";
		if (!c->nodes[i].element)
			def->by_name[def->nnames++] = i;
	}
	qsort_arg(def->by_name, def->nnames, sizeof(int32), compare_names,
			  graph->nodes);
	for (int i = 1; i < def->nnames; i++)
	{
		const char *name = graph->nodes[def->by_name[i]].name;

		if (name[0] != '\0' &&
			strcmp(name, graph->nodes[def->by_name[i - 1]].name) == 0)
			saga_fault(c->faults, name, "Give every step a name of its own.",
					   "more than one step has this name");
	}
}

/* The scopes as the machine knows them. */
static void
set_scopes(SagaCompile *c)
{
	SagaGraph  *graph = c->def->graph;
	ListCell   *lc;

	graph->scopes = palloc0(list_length(c->scopes) * sizeof(SagaScope));
	foreach(lc, c->scopes)
	{
		SagaCompileScope *from = lfirst(lc);
		SagaScope  *scope = &graph->scopes[graph->nscopes++];

		scope->first = from->first;
		scope->nnodes = from->nnodes;
		scope->owner = from->owner;
	}
	for (int i = 0; i < c->nnodes; i++)
	{
		SagaNode   *node = &graph->nodes[i];

		node->scope = c->nodes[i].scope;
		node->body = c->nodes[i].body;
		node->branch = c->nodes[i].branch;
		node->branch_case = c->nodes[i].branch_case;
		node->savepoint = SAGA_NO_NODE;
		node->signal = -1;
	}
}

/* ---- who may count on whom ---- */

/*
 * Is 'node' taken whenever 'dep', of the same scope, is?  So it is if dep is in
 * the case of a branch (or none) that node is in, or further inside.
 */
bool
saga_compile_covers(const SagaCompile *c, int node, int dep)
{
	int			branch = c->nodes[dep].branch;
	int			branch_case = c->nodes[dep].branch_case;

	while (branch != c->nodes[node].branch ||
		   (branch >= 0 && branch_case != c->nodes[node].branch_case))
	{
		if (branch < 0)
			return false;
		branch_case = c->nodes[branch].branch_case;
		branch = c->nodes[branch].branch;
	}
	return true;
}

/* Are the two, of one scope, in different cases of one branch? */
bool
saga_compile_exclusive(const SagaCompile *c, int a, int b)
{
	for (int x = a; c->nodes[x].branch >= 0; x = c->nodes[x].branch)
		for (int y = b; c->nodes[y].branch >= 0; y = c->nodes[y].branch)
			if (c->nodes[x].branch == c->nodes[y].branch)
				return c->nodes[x].branch_case != c->nodes[y].branch_case;
	return false;
}

/* The node of 'scope' in the body of which, at any depth, a node is; or -1. */
int
saga_compile_lift(const SagaCompile *c, int node, int scope)
{
	while (node >= 0 && c->nodes[node].scope != scope)
		node = c->def->graph->scopes[c->nodes[node].scope].owner;
	return node;
}

/*
 * The innermost scope that two nodes, or the bodies they own, are in; and
 * which nodes of it they are, or are in.
 */
void
saga_compile_meet(const SagaCompile *c, int *a, int *b)
{
	for (int scope = c->nodes[*a].scope;;)
	{
		int			lifted = saga_compile_lift(c, *b, scope);

		if (lifted >= 0)
		{
			*a = saga_compile_lift(c, *a, scope);
			*b = lifted;
			return;
		}
		scope = c->nodes[c->def->graph->scopes[scope].owner].scope;
	}
}

/* ---- second walk: who waits for whom ---- */

static List *
resolve_after(SagaCompile *c, JsonbContainer *json, int node, bool group)
{
	JsonbContainer *array = saga_json_container(json, "after");
	const char *step = group ? NULL : c->def->graph->nodes[node].name;
	List	   *deps = NIL;

	for (uint32 i = 0; array != NULL && i < JsonContainerSize(array); i++)
	{
		JsonbValue *v = getIthJsonbValueFromContainer(array, i);
		char	   *name;
		int			dep;

		if (v->type != jbvString)
			continue;
		name = pnstrdup(v->val.string.val, v->val.string.len);
		dep = saga_definition_node(c->def, name);
		if (dep == SAGA_NO_NODE)
			saga_fault(c->faults, step,
					   "List names of other steps of this definition; '{}' means: at once.",
					   "after names step \"%s\", which does not exist", name);
		else if (c->nodes[dep].scope != c->nodes[node].scope)
			saga_fault(c->faults, step,
					   "A loop and what is in it begin together: name steps of the same list, or the loop as a whole.",
					   "after names step \"%s\", which is %s", name,
					   saga_compile_lift(c, dep, c->nodes[node].scope) >= 0
					   ? "in a loop" : "outside of the loop");
		else if (saga_compile_exclusive(c, node, dep))
			saga_fault(c->faults, step,
					   "Only one case of a branch is taken.",
					   "after names step \"%s\", which is in another case", name);
		else
			deps = list_append_unique_int(deps, dep);
	}
	return deps;
}

/* What order_nodes() knows of the list it is at. */
typedef struct Level
{
	bool		sequence;		/* one after the other, or all at once */
	List	   *wait;			/* what its first nodes wait for */
	int			branch;			/* what they wait for in any case; or -1 */
} Level;

/*
 * Of the nodes from first on, those that nothing among them waits for and that
 * is sure to be taken if they are.
 */
static List *
sinks(SagaCompile *c, int first, int next)
{
	List	   *result = NIL;

	for (int node = first; node < next; node++)
		if (!c->nodes[node].has_next)
			result = lappend_int(result, node);
	return result;
}

static void
set_has_next(SagaCompile *c, int first, int next)
{
	ListCell   *lc;

	for (int node = first; node < next; node++)
		foreach(lc, c->nodes[node].deps)
			if (saga_compile_covers(c, node, lfirst_int(lc)))
				c->nodes[lfirst_int(lc)].has_next = true;
}

/* The same walk as collect_nodes(); 'next' is the number of the next node. */
static void
order_nodes(SagaCompile *c, JsonbContainer *array, int *next, const Level *level)
{
	int			start = *next;

	for (uint32 i = 0; array != NULL && i < JsonContainerSize(array); i++)
	{
		JsonbContainer *json = node_at(array, i);
		Level		inner = *level;
		int			first = *next;

		if (json == NULL)
			continue;
		if (saga_json_get(json, "after") != NULL && first < c->nnodes)
		{
			inner.wait = resolve_after(c, json, first, is_kind(json, "parallel"));
			if (level->branch >= 0)
				inner.wait = list_append_unique_int(inner.wait, level->branch);
		}
		else if (level->sequence && first > start)
			inner.wait = sinks(c, start, first);

		if (is_kind(json, "parallel"))
		{
			inner.sequence = false;
			order_nodes(c, nodes_of(json, "nodes"), next, &inner);
		}
		else
		{
			JsonbContainer *cases = is_kind(json, "branch")
				? nodes_of(json, "cases") : NULL;

			c->nodes[(*next)++].deps = inner.wait;
			inner.sequence = true;
			inner.wait = list_make1_int(first);
			inner.branch = first;
			for (uint32 k = 0; cases != NULL && k < JsonContainerSize(cases); k++)
			{
				JsonbContainer *one = node_at(cases, k);

				if (one != NULL)
					order_nodes(c, nodes_of(one, "steps"), next, &inner);
			}
		}
		if (level->sequence)
			set_has_next(c, first, *next);
	}
}

static void
order_scopes(SagaCompile *c)
{
	ListCell   *lc;

	foreach(lc, c->scopes)
	{
		SagaCompileScope *scope = lfirst(lc);
		Level		level = {.sequence = true,.branch = -1};
		int			next = scope->first;

		if (scope->owner < 0)
			order_nodes(c, scope->json, &next, &level);
		else if (is_kind(scope->json, "loop"))
			order_nodes(c, nodes_of(scope->json, "steps"), &next, &level);
		else
			next++;
		Assert(next == scope->first + scope->nnodes);
	}
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
	foreach(lc, c->nodes[node].deps)
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
			foreach(lc, c->nodes[i].deps)
				waiting[lfirst_int(lc)]++;
	for (int i = 0; i < c->nnodes; i++)
		if (reach[i] == REACH_NEVER && waiting[i] == 0)
			queue = lappend_int(queue, i);
	while (queue != NIL)
	{
		int			node = llast_int(queue);

		queue = list_delete_last(queue);
		peeled[node] = true;
		foreach(lc, c->nodes[node].deps)
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
	MemoryContext old = MemoryContextSwitchTo(c->scratch);
	Reach	   *reach;

	collect_scopes(c, nodes_of(body, "steps"));
	MemoryContextSwitchTo(old);
	name_nodes(c);
	set_scopes(c);
	if (c->nnodes == 0)
		return;

	MemoryContextSwitchTo(c->scratch);
	c->words = (c->nnodes + 63) / 64;
	c->before = palloc(c->nnodes * sizeof(uint64 *));
	for (int i = 0; i < c->nnodes; i++)
		c->before[i] = palloc0(c->words * sizeof(uint64));
	order_scopes(c);

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
