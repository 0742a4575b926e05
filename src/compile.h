/*
 * compile.h
 *		One compilation of a definition: between definition.c (which see),
 *		definition_order.c, definition_names.c, definition_expr.c and
 *		definition_rules.c only.
 */
#ifndef SAGA_COMPILE_H
#define SAGA_COMPILE_H

#include "postgres.h"

#include "nodes/pg_list.h"

#include "define.h"

/* What the graph does not say of a node, or not yet. */
typedef struct SagaCompileNode
{
	JsonbContainer *json;
	bool		element;		/* the body of a for_each: same JSON as its
								 * EACH, which stands for it by name */
	int			scope;
	int			body;			/* EACH, LOOP: scope, or -1 */
	int			branch;			/* innermost of its scope, or -1 */
	int			branch_case;
	const char *on_failure;		/* its own or inherited, or NULL */
	List	   *conditions;		/* texts: of the parallel groups it is in */
	const SagaType *item_type;	/* of an element: where it is declared */
	List	   *deps;			/* numbers of nodes */
	bool		has_next;		/* some node that is taken whenever it is,
								 * waits for it */
} SagaCompileNode;

typedef struct SagaCompileScope
{
	JsonbContainer *json;		/* of the owner; scope 0: the steps */
	int			owner;
	int			first;
	int			nnodes;
	const char *on_failure;
} SagaCompileScope;

/* On the stack; what it points to, but for 'def', is in the scratch context. */
typedef struct SagaCompile
{
	SagaDefinition *def;
	SagaFaults *faults;
	MemoryContext scratch;
	int			nnodes,
				maxnodes;
	SagaCompileNode *nodes;
	List	   *scopes;			/* of SagaCompileScope, by number */
	List	   *queue;			/* of those without a number yet */
	int			words;			/* of one bit set */
	uint64	  **before;			/* by node: the nodes that come before it */
	bool		cyclic;
	bool	   *undo_waived;	/* by node */
} SagaCompile;

/* Where a template stands: what its names may refer to. */
typedef struct SagaPlace
{
	SagaNameScope scope;
	SagaCompile *c;
	int			node;			/* -1: one of the definition's own */
	const char *part;			/* "action", "compensation", "on_stuck" */
	bool		undo;
	bool		remote;
	bool		own_result;		/* :result is the answer that is looked at */
	bool		own_body;		/* steps of the node's own body have a meaning,
								 * and so has :iteration */
	bool		token;			/* so has :callback_token */
	bool		body_seen;		/* set if one of its steps was named */
	bool		http;			/* METHOD /path, no SQL */
	const char *hint;			/* set with a problem */
} SagaPlace;

/* ---- definition.c ---- */

/* A call of SQL, with nothing to run yet; retry may be NULL. */
extern SagaCall *saga_compile_new_call(const char *server, SagaTime timeout,
									   JsonbContainer *retry);

/* ---- definition_order.c ---- */

/* The kind of a node in JSON; "" if it says none. */
extern const char *saga_node_kind(JsonbContainer *json);

/* Number and name the nodes, find who waits for whom. */
extern void saga_compile_order(SagaCompile *c, JsonbContainer *body);

extern bool saga_compile_covers(const SagaCompile *c, int node, int dep);
extern bool saga_compile_exclusive(const SagaCompile *c, int a, int b);
extern int	saga_compile_lift(const SagaCompile *c, int node, int scope);
extern void saga_compile_meet(const SagaCompile *c, int *a, int *b);

/* ---- definition_names.c ---- */

/* Text with names resolved; NULL, with a fault, where it cannot be parsed. */
extern SagaTemplate *saga_compile_template(SagaPlace *place, const char *text);

/* Does node 'before' come before node 'node', bodies included? */
extern bool saga_compile_comes_before(const SagaCompile *c, int before,
									  int node);

/* ---- definition_expr.c ---- */

/* What an expression is made into. */
typedef enum SagaExpression
{
	SAGA_EXPR_BOOLEAN,
	SAGA_EXPR_WHILE,			/* the same; see definition_expr.c */
	SAGA_EXPR_JSON,				/* also a JSON text with names in it */
	SAGA_EXPR_DURATION,
	SAGA_EXPR_INSTANT,
} SagaExpression;

/*
 * The call that evaluates one expression, or (as number of the first true
 * one, 'otherwise' if none is) a list of conditions; NULL with a fault where
 * it is none.
 */
extern SagaCall *saga_compile_expression(SagaPlace *place, SagaExpression kind,
										 const char *text);
extern SagaCall *saga_compile_cases(SagaPlace *place, List *texts,
									int otherwise);

/* ---- definition_rules.c ---- */

/* What each node does when it fails: its own, or inherited. */
extern void saga_compile_failures(SagaCompile *c);

/* Faults that show only in the finished graph. */
extern void saga_compile_rules(SagaCompile *c);

#endif							/* SAGA_COMPILE_H */
