/*
 * compile.h
 *		One compilation of a definition: between definition.c (which see),
 *		definition_order.c and definition_names.c only.
 */
#ifndef SAGA_COMPILE_H
#define SAGA_COMPILE_H

#include "postgres.h"

#include "nodes/pg_list.h"

#include "define.h"

/* On the stack; what it points to, but for 'def', is in the scratch context. */
typedef struct SagaCompile
{
	SagaDefinition *def;
	SagaFaults *faults;
	MemoryContext scratch;
	int			nnodes,
				maxnodes;
	JsonbContainer **json;		/* by node */
	List	  **deps;			/* of node numbers, by node */
	bool	   *has_next;		/* by node: some node waits for it */
	int			words;			/* of one bit set */
	uint64	  **before;			/* by node: the nodes that come before it */
	bool		cyclic;
} SagaCompile;

/* Where a template stands: what its names may refer to. */
typedef struct SagaPlace
{
	SagaNameScope scope;
	SagaCompile *c;
	int			node;			/* -1: one of the definition's own actions */
	const char *part;			/* "action", "compensation", "on_stuck" */
	bool		undo;
	bool		remote;
	bool		http;			/* METHOD /path, no SQL */
	const char *hint;			/* set with a problem */
} SagaPlace;

/* The kind of a node in JSON; "" if it says none. */
extern const char *saga_node_kind(JsonbContainer *json);

/* Number and name the nodes, find who waits for whom. */
extern void saga_compile_order(SagaCompile *c, JsonbContainer *body);

/* Text with names resolved; NULL, with a fault, where it cannot be parsed. */
extern SagaTemplate *saga_compile_template(SagaPlace *place, const char *text);

#endif							/* SAGA_COMPILE_H */
