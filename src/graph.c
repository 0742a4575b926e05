/*
 * graph.c
 *		Completes a definition's graph: scopes, successors, topological order,
 *		pivot, what lies after the pivot; finds the faults of an order (see
 *		graph.h).
 *
 * Called by definition.c when a version is compiled, by the simulator and by
 * tests.  Pure: must not touch anything but the graph and arena it is given,
 * and must not be called again on a finished graph.
 */
#include "graph.h"

typedef struct Faults
{
	SagaGraphFault *list;
	int			max;
	int			n;
} Faults;

static void
report(Faults *faults, SagaGraphFaultKind kind, int32 node)
{
	if (faults->n < faults->max)
	{
		faults->list[faults->n].kind = kind;
		faults->list[faults->n].node = node;
	}
	faults->n++;
}

static void *
alloc_ints(SagaArena *arena, int32 n)
{
	return arena->alloc(arena, sizeof(int32) * (size_t) Max(n, 1));
}

/* The reverse of deps, one array shared by all nodes. */
static void
link_successors(SagaGraph *graph, SagaArena *arena)
{
	int32		total = 0;
	int32	   *pool;

	for (int32 i = 0; i < graph->nnodes; i++)
		graph->nodes[i].nnext = 0;
	for (int32 i = 0; i < graph->nnodes; i++)
	{
		SagaNode   *node = &graph->nodes[i];

		for (int32 j = 0; j < node->ndeps; j++)
		{
			Assert(node->deps[j] >= 0 && node->deps[j] < graph->nnodes &&
				   graph->nodes[node->deps[j]].scope == node->scope);
			graph->nodes[node->deps[j]].nnext++;
			total++;
		}
	}

	pool = alloc_ints(arena, total);
	for (int32 i = 0; i < graph->nnodes; i++)
	{
		graph->nodes[i].next = pool;
		pool += graph->nodes[i].nnext;
		graph->nodes[i].nnext = 0;
	}
	for (int32 i = 0; i < graph->nnodes; i++)
	{
		SagaNode   *node = &graph->nodes[i];

		for (int32 j = 0; j < node->ndeps; j++)
		{
			SagaNode   *dep = &graph->nodes[node->deps[j]];

			dep->next[dep->nnext++] = i;
		}
	}
}

/*
 * Kahn's algorithm.  Returns how many nodes found a place in graph->topo;
 * unmet[] of a node that found none stays above 0.
 */
static int32
sort_nodes(SagaGraph *graph, int32 *unmet)
{
	int32		ntopo = 0;

	for (int32 i = 0; i < graph->nnodes; i++)
	{
		unmet[i] = graph->nodes[i].ndeps;
		if (unmet[i] == 0)
			graph->topo[ntopo++] = i;
	}
	for (int32 done = 0; done < ntopo; done++)
	{
		SagaNode   *node = &graph->nodes[graph->topo[done]];

		for (int32 j = 0; j < node->nnext; j++)
			if (--unmet[node->next[j]] == 0)
				graph->topo[ntopo++] = node->next[j];
	}
	return ntopo;
}

/*
 * One fault per cycle, not per node: every node left over by the sort has a
 * dependency that was left over too, so walking those must come back to its
 * own trail (a new cycle) or to that of an earlier walk (one reported before).
 */
static void
report_cycles(const SagaGraph *graph, const int32 *unmet, int32 *trail,
			  Faults *faults)
{
	memset(trail, 0, sizeof(int32) * (size_t) graph->nnodes);
	for (int32 start = 0; start < graph->nnodes; start++)
	{
		int32		at = start;

		if (unmet[start] == 0 || trail[start] != 0)
			continue;
		while (trail[at] == 0)
		{
			const SagaNode *node = &graph->nodes[at];
			int32		j = 0;

			trail[at] = start + 1;
			while (unmet[node->deps[j]] == 0)
				j++;
			at = node->deps[j];
		}
		if (trail[at] == start + 1)
			report(faults, SAGA_GRAPH_CYCLE, at);
	}
}

/* Everything that follows 'from', marked; queue has room for every node. */
static void
mark_followers(const SagaGraph *graph, int32 from, bool *marked, int32 *queue)
{
	int32		head = 0;
	int32		tail = 0;

	queue[tail++] = from;
	while (head < tail)
	{
		const SagaNode *node = &graph->nodes[queue[head++]];

		for (int32 j = 0; j < node->nnext; j++)
		{
			int32		next = node->next[j];

			/* 'from' itself is met again only on a cycle, a fault */
			if (marked[next] || next == from)
				continue;
			marked[next] = true;
			queue[tail++] = next;
		}
	}
}

/*
 * Which scope each node is in, and whose body each scope is.  A graph without
 * scopes is a single one.
 */
static void
link_scopes(SagaGraph *graph, SagaArena *arena, Faults *faults)
{
	if (graph->nscopes == 0)
	{
		graph->nscopes = 1;
		graph->scopes = arena->alloc(arena, sizeof(SagaScope));
		graph->scopes[0].nnodes = graph->nnodes;
	}
	for (int32 s = 0; s < graph->nscopes; s++)
	{
		SagaScope  *scope = &graph->scopes[s];

		scope->owner = -1;
		for (int32 i = 0; i < scope->nnodes; i++)
			graph->nodes[scope->first + i].scope = s;
	}
	for (int32 i = 0; i < graph->nnodes; i++)
	{
		SagaNode   *node = &graph->nodes[i];

		if (node->branch < 0 || node->branch >= graph->nnodes ||
			graph->nodes[node->branch].kind != SAGA_NODE_BRANCH)
			node->branch = -1;
		if (node->kind != SAGA_NODE_EACH && node->kind != SAGA_NODE_LOOP)
			node->body = -1;
		else if (node->body <= node->scope || node->body >= graph->nscopes ||
				 graph->scopes[node->body].nnodes == 0 ||
				 graph->scopes[node->body].owner >= 0)
			report(faults, SAGA_GRAPH_NO_BODY, i);
		else
			graph->scopes[node->body].owner = i;
	}
}

/* before_pivot of all that come before the node. */
static void
mark_before(SagaGraph *graph, int32 from, int32 *queue)
{
	int32		head = 0;
	int32		tail = 0;

	queue[tail++] = from;
	while (head < tail)
	{
		const SagaNode *node = &graph->nodes[queue[head++]];

		for (int32 j = 0; j < node->ndeps; j++)
		{
			int32		dep = node->deps[j];

			if (graph->nodes[dep].before_pivot || dep == from)
				continue;
			graph->nodes[dep].before_pivot = true;
			queue[tail++] = dep;
		}
	}
}

/* One pivot, outside all bodies; what follows it, and the bodies of that. */
static void
find_pivot(SagaGraph *graph, bool *after, int32 *queue, Faults *faults)
{
	graph->pivot = -1;
	for (int32 i = 0; i < graph->nnodes; i++)
	{
		if (!graph->nodes[i].pivot)
			continue;
		if (graph->nodes[i].scope != 0)
			report(faults, SAGA_GRAPH_PIVOT_IN_BODY, i);
		else if (graph->pivot >= 0)
			report(faults, SAGA_GRAPH_TWO_PIVOTS, i);
		else
			graph->pivot = i;
	}
	if (graph->pivot >= 0)
		mark_followers(graph, graph->pivot, after, queue);
	for (int32 s = 1; s < graph->nscopes; s++)
	{
		const SagaScope *scope = &graph->scopes[s];

		for (int32 i = 0; i < scope->nnodes && scope->owner >= 0; i++)
			after[scope->first + i] = after[scope->owner];
	}
	for (int32 i = 0; i < graph->nnodes; i++)
		graph->nodes[i].after_pivot = after[i];
	if (graph->pivot >= 0)
		mark_before(graph, graph->pivot, queue);
}

/* 'goto' leads back only: the save-point comes before the node, or before a
 * node whose body, at whatever depth, it is in. */
static bool
savepoint_is_before(const SagaGraph *graph, int32 i, bool *marked,
					int32 *queue)
{
	int32		savepoint = graph->nodes[i].savepoint;

	if (savepoint < 0 || savepoint >= graph->nnodes ||
		graph->nodes[savepoint].kind != SAGA_NODE_SAVEPOINT)
		return false;
	while (i >= 0 && graph->nodes[i].scope != graph->nodes[savepoint].scope)
		i = graph->scopes[graph->nodes[i].scope].owner;
	if (i < 0)
		return false;
	memset(marked, 0, (size_t) graph->nnodes);
	mark_followers(graph, savepoint, marked, queue);
	return marked[i];
}

int
saga_graph_finish(SagaGraph *graph, const bool *undo_waived, SagaArena *arena,
				  SagaGraphFault *list, int maxfaults)
{
	Faults		faults = {list, maxfaults, 0};
	int32	   *unmet = alloc_ints(arena, graph->nnodes);
	int32	   *scratch = alloc_ints(arena, graph->nnodes);
	bool	   *marked = arena->alloc(arena, (size_t) graph->nnodes + 1);

	link_scopes(graph, arena, &faults);
	link_successors(graph, arena);
	graph->topo = alloc_ints(arena, graph->nnodes);
	if (sort_nodes(graph, unmet) < graph->nnodes)
		report_cycles(graph, unmet, scratch, &faults);
	find_pivot(graph, marked, scratch, &faults);

	for (int32 i = 0; i < graph->nnodes; i++)
	{
		const SagaNode *node = &graph->nodes[i];

		if (node->kind <= SAGA_NODE_UNDO && !node->has_compensation &&
			!node->after_pivot && !node->pivot &&
			!(undo_waived && undo_waived[i]))
			report(&faults, SAGA_GRAPH_UNDO_MISSING, i);
		if (node->on_failure == SAGA_FAILURE_GOTO &&
			!savepoint_is_before(graph, i, marked, scratch))
			report(&faults, SAGA_GRAPH_BAD_SAVEPOINT, i);
	}
	return faults.n;
}
