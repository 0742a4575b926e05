/*
 * define_build.h
 *		Between the files that make the stored body of a definition only:
 *		define_body.c (the whole, nodes) and define_props.c (one property).
 */
#ifndef SAGA_DEFINE_BUILD_H
#define SAGA_DEFINE_BUILD_H

#include "postgres.h"

#include "define.h"

/* Kinds of nodes, as bits of those that have a property. */
#define ON_STEP			0x0001
#define ON_UNDO			0x0002
#define ON_PARALLEL		0x0004
#define ON_CALL			0x0008
#define ON_SLEEP		0x0010
#define ON_SLEEP_UNTIL	0x0020
#define ON_SIGNAL		0x0040
#define ON_BRANCH		0x0080
#define ON_LOOP			0x0100
#define ON_SAVEPOINT	0x0200
#define ON_WHEN			0x0400
#define ON_OTHERWISE	0x0800
#define ON_ASKED		0x1000

#define ON_CASES		(ON_WHEN | ON_OTHERWISE)
#define ON_NODES		(0x1fff & ~ON_CASES)
#define ON_NAMED		(ON_NODES & ~ON_PARALLEL)

typedef struct SagaBuilder
{
	SagaFaults *faults;
	JsonbParseState *out;
	int			nnodes;
	const char *step;			/* the node being built, or NULL */
} SagaBuilder;

/* A look-up that may raise an error; see saga_try(). */
typedef struct SagaTypeLookup
{
	const char *text;			/* what to parse, or: */
	struct TypeName *typename;
	Oid			type;
	int32		typmod;
	char	   *name;			/* canonical */
	bool		has_domain;
	char	   *problem;
} SagaTypeLookup;

/* A key, and its value unless that is NULL (then the caller pushes it). */
extern void saga_put(SagaBuilder *b, const char *key, JsonbValue *value);
extern void saga_put_text(SagaBuilder *b, const char *key, const char *text);
extern void saga_put_number(SagaBuilder *b, const char *key, Numeric number);

/*
 * A property of a node of the given kind, checked and written in its
 * canonical form.  False if such a node has no such property.
 */
extern bool saga_put_property(SagaBuilder *b, int on, const char *key,
							  const JsonbValue *value);

/* Find a type and its canonical name, or add a fault. */
extern bool saga_put_find_type(SagaBuilder *b, const char *prefix,
							   SagaTypeLookup *l);
extern void saga_fault_from_error(SagaBuilder *b, const char *prefix,
								  const ErrorData *error);

extern bool saga_is_blank(const char *text);

#endif							/* SAGA_DEFINE_BUILD_H */
