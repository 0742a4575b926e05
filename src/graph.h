/*
 * graph.h
 *		A definition's order as data: what waits for what, where the pivot is,
 *		which undo comes first.  Pure (see pure.h).
 *
 * Built once for each definition version by definition.c, immutable after
 * saga_graph_finish().  Read by machine.c.
 */
#ifndef SAGA_GRAPH_H
#define SAGA_GRAPH_H

#include "pure.h"

/* More nodes than this in one definition are refused (SGL01). */
#define SAGA_MAX_NODES	1000

typedef enum SagaNodeKind
{
	SAGA_NODE_STEP,				/* action, perhaps compensation */
	SAGA_NODE_UNDO,				/* compensation only: done when reached */
} SagaNodeKind;

typedef enum SagaOnFailure
{
	SAGA_FAILURE_DEFAULT,		/* compensate before the pivot, stuck after */
	SAGA_FAILURE_COMPENSATE,
	SAGA_FAILURE_CONTINUE,
	SAGA_FAILURE_STUCK,
} SagaOnFailure;

typedef enum SagaUndoOrder
{
	SAGA_UNDO_REVERSE,			/* one at a time, newest completion first */
	SAGA_UNDO_GRAPH,			/* a node once all that followed it is undone */
	SAGA_UNDO_PARALLEL,			/* all at once */
} SagaUndoOrder;

typedef struct SagaRetry
{
	int32		max_attempts;	/* 0: no limit */
	SagaTime	initial_interval;
	SagaTime	max_interval;
	double		backoff;		/* factor from one interval to the next */
	double		jitter;			/* share of the interval, 0 to 1 */
} SagaRetry;

typedef struct SagaNode
{
	const char *name;
	SagaNodeKind kind;
	bool		has_compensation;
	bool		action_local;	/* runs in this database: effect and outcome
								 * share a commit, outcome is never unknown */
	bool		compensation_local;
	bool		pivot;
	SagaOnFailure on_failure;
	SagaRetry	retry;			/* of the action */
	SagaRetry	undo_retry;		/* of the compensation; max_attempts unused */
	int32		ndeps;			/* nodes this one waits for */
	int32	   *deps;

	/* set by saga_graph_finish() */
	int32		nnext;			/* nodes that wait for this one */
	int32	   *next;
	bool		after_pivot;	/* a strict descendant of the pivot */
} SagaNode;

typedef struct SagaGraph
{
	int32		nnodes;
	SagaNode   *nodes;
	SagaUndoOrder undo_order;
	bool		has_on_completed;	/* local SQL in the ending transaction */
	bool		has_on_compensated;
	bool		has_on_stuck;

	/* set by saga_graph_finish() */
	int32		pivot;			/* node, or -1 */
	int32	   *topo;			/* a topological order of all nodes */
} SagaGraph;

typedef enum SagaGraphFaultKind
{
	SAGA_GRAPH_OK,
	SAGA_GRAPH_CYCLE,			/* node is on a cycle */
	SAGA_GRAPH_TWO_PIVOTS,		/* node is the second pivot */
	SAGA_GRAPH_UNDO_MISSING,	/* node is not after the pivot, not the pivot,
								 * and has no compensation */
} SagaGraphFaultKind;

typedef struct SagaGraphFault
{
	SagaGraphFaultKind kind;
	int32		node;
} SagaGraphFault;

/*
 * Complete a graph whose nodes and deps are set: successors, topological
 * order, pivot, after_pivot.  Returns the number of faults found and writes
 * up to maxfaults of them; a graph with faults must not be run.  A node with
 * no_undo set by the definition's author counts as having a compensation for
 * the fault check only (definition.c passes it in undo_waived, may be NULL).
 */
extern int	saga_graph_finish(SagaGraph *graph, const bool *undo_waived,
							  SagaArena *arena,
							  SagaGraphFault *faults, int maxfaults);

#endif							/* SAGA_GRAPH_H */
