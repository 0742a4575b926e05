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
	SAGA_NODE_SLEEP,			/* done at a time that is evaluated */
	SAGA_NODE_SIGNAL,			/* done by a signal */
	SAGA_NODE_BRANCH,			/* evaluated: which of its cases is taken */
	SAGA_NODE_EACH,				/* its body once for each element */
	SAGA_NODE_LOOP,				/* its body again and again */
	SAGA_NODE_SAVEPOINT,		/* where 'goto' comes back to */
} SagaNodeKind;

typedef enum SagaOnFailure
{
	SAGA_FAILURE_DEFAULT,		/* compensate before the pivot, stuck after */
	SAGA_FAILURE_COMPENSATE,
	SAGA_FAILURE_CONTINUE,
	SAGA_FAILURE_STUCK,
	SAGA_FAILURE_GOTO,			/* undo back to a save-point, then forward */
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
	int32		ndeps;			/* nodes of its scope this one waits for */
	int32	   *deps;

	/*
	 * Control flow.  Cases of a branch are ordinary nodes of the branch's own
	 * scope that wait for the branch; bodies of EACH and LOOP are scopes of
	 * their own, of which the state holds one run for each element or
	 * iteration.
	 */
	bool		has_condition;	/* evaluated when it is reached; false: the
								 * node is passed over */
	int32		scope;			/* set by saga_graph_finish() */
	int32		body;			/* EACH, LOOP: the scope of its body; or -1 */
	int32		branch;			/* innermost BRANCH in a case of which it is,
								 * or -1 */
	int32		branch_case;	/* ... and which case, from 0 */
	int32		ncases;			/* BRANCH */
	int32		max_parallel;	/* EACH: runs at a time; 0 = no limit */
	int32		max_iterations; /* LOOP: reached with 'while' still true, the
								 * loop is declined; 0 = no limit */
	bool		has_while;		/* LOOP: else exactly max_iterations */
	int32		signal;			/* SIGNAL: index into graph->signals */
	SagaTime	timeout;		/* SIGNAL: how long it waits; STEP: how long
								 * an accepted call may stay unanswered;
								 * 0 = for ever */
	bool		timeout_continue;	/* SIGNAL: the time-out counts as done */
	int32		savepoint;		/* with SAGA_FAILURE_GOTO */
	int32		max_tries;		/* SAVEPOINT: times forward, the first one
								 * included; then its failure is a plain one */
	bool		at_most_once;	/* never sent twice: an unknown answer ends
								 * the attempts */

	/* set by saga_graph_finish() */
	int32		nnext;			/* nodes that wait for this one */
	int32	   *next;
	bool		after_pivot;	/* a strict descendant of the pivot, or in the
								 * body of one */
	bool		before_pivot;	/* the pivot is a strict descendant of it */
} SagaNode;

/* Nodes that are run together: the definition itself is scope 0. */
typedef struct SagaScope
{
	int32		first;			/* its nodes: first .. first + nnodes - 1 */
	int32		nnodes;
	int32		owner;			/* set by saga_graph_finish(): node whose body
								 * it is; -1: scope 0 */
} SagaScope;

typedef struct SagaGraph
{
	int32		nnodes;
	SagaNode   *nodes;
	int32		nscopes;		/* an owner's scope has a higher number than
								 * the scope the owner is in */
	SagaScope  *scopes;
	int32		nsignals;
	const char **signals;		/* names of the signals that are waited for */
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
	SAGA_GRAPH_PIVOT_IN_BODY,	/* node is the pivot, and in a body: it would
								 * be passed more than once, or never */
	SAGA_GRAPH_BAD_SAVEPOINT,	/* node goes to what is no save-point, or does
								 * not come before it */
	SAGA_GRAPH_NO_BODY,			/* EACH or LOOP node whose body is missing,
								 * empty, or another one's */
} SagaGraphFaultKind;

typedef struct SagaGraphFault
{
	SagaGraphFaultKind kind;
	int32		node;
} SagaGraphFault;

/*
 * Complete a graph whose nodes, deps and scopes are set (scopes' owners and
 * nodes' scopes are found here; nscopes 0 means that there are no bodies):
 * successors, topological order, pivot, after_pivot.  Returns the number of faults found and writes
 * up to maxfaults of them; a graph with faults must not be run.  A node with
 * no_undo set by the definition's author counts as having a compensation for
 * the fault check only (definition.c passes it in undo_waived, may be NULL).
 */
extern int	saga_graph_finish(SagaGraph *graph, const bool *undo_waived,
							  SagaArena *arena,
							  SagaGraphFault *faults, int maxfaults);

#endif							/* SAGA_GRAPH_H */
