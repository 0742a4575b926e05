/*
 * graph.c
 *		Completes a definition's graph: successors, topological order, pivot,
 *		what lies after the pivot; finds the faults of an order (see graph.h).
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
			Assert(node->deps[j] >= 0 && node->deps[j] < graph->nnodes);
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

/* Marks all that follows the pivot; queue has room for every node. */
static void
mark_after_pivot(SagaGraph *graph, int32 *queue)
{
	int32		head = 0;
	int32		tail = 0;

	queue[tail++] = graph->pivot;
	while (head < tail)
	{
		SagaNode   *node = &graph->nodes[queue[head++]];

		for (int32 j = 0; j < node->nnext; j++)
		{
			SagaNode   *next = &graph->nodes[node->next[j]];

			/* the pivot itself is met again only on a cycle, a fault */
			if (next->after_pivot || node->next[j] == graph->pivot)
				continue;
			next->after_pivot = true;
			queue[tail++] = node->next[j];
		}
	}
}

int
saga_graph_finish(SagaGraph *graph, const bool *undo_waived, SagaArena *arena,
				  SagaGraphFault *list, int maxfaults)
{
	Faults		faults = {list, maxfaults, 0};
	int32	   *unmet = alloc_ints(arena, graph->nnodes);
	int32	   *scratch = alloc_ints(arena, graph->nnodes);

	link_successors(graph, arena);
	graph->topo = alloc_ints(arena, graph->nnodes);
	if (sort_nodes(graph, unmet) < graph->nnodes)
		report_cycles(graph, unmet, scratch, &faults);

	graph->pivot = -1;
	for (int32 i = 0; i < graph->nnodes; i++)
	{
		graph->nodes[i].after_pivot = false;
		if (!graph->nodes[i].pivot)
			continue;
		if (graph->pivot < 0)
			graph->pivot = i;
		else
			report(&faults, SAGA_GRAPH_TWO_PIVOTS, i);
	}
	if (graph->pivot >= 0)
		mark_after_pivot(graph, scratch);

	for (int32 i = 0; i < graph->nnodes; i++)
	{
		const SagaNode *node = &graph->nodes[i];

		if (!node->has_compensation && !node->after_pivot && !node->pivot &&
			!(undo_waived && undo_waived[i]))
			report(&faults, SAGA_GRAPH_UNDO_MISSING, i);
	}
	return faults.n;
}
