/*
 * types.h
 *		JSON values against declared types: inputs and results.
 */
#ifndef SAGA_TYPES_H
#define SAGA_TYPES_H

#include "postgres.h"

#include "template.h"

/*
 * Everything saga_value_text() and saga_value_check() need to know of a type,
 * in the given context.  The type must exist and be no pseudo-type.
 */
extern SagaType *saga_type_resolve(Oid type, int32 typmod,
								   MemoryContext context);

/* The type below 'path' (an array's element, an attribute), or NULL. */
extern const SagaType *saga_type_at(const SagaType *type, int npath,
									char **path);

/*
 * Raise an error (of the type's input function, or 22023) if the value does
 * not fit.  True if it was normalised into *out: scale of a numeric, ISO form
 * of a date or time.
 */
extern bool saga_value_check(SagaType *type, const JsonbValue *v,
							 JsonbValue *out);

/* The name of a type such that it can be read back under any search_path. */
extern char *saga_type_name(Oid type, int32 typmod);

/*
 * The type a text names, under the current search_path.  False with *problem
 * (palloc'd) for a syntax error, an unknown or shell type, a pseudo-type.
 */
extern bool saga_type_parse(const char *text, Oid *type, int32 *typmod,
							char **problem);

#endif							/* SAGA_TYPES_H */
