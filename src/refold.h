/*
 * refold.h
 *		The log of a saga, folded on another version of its definition.
 */
#ifndef SAGA_REFOLD_H
#define SAGA_REFOLD_H

#include "postgres.h"

#include "nodes/pg_list.h"

#include "definition.h"
#include "log.h"

/*
 * Fold entries, in their order, on another version.  NULL if they fit, with
 * the state and the step numbers that they have there; else why not.  All in
 * the current memory context.
 */
extern char *saga_refold(const SagaDefinition *from, const SagaDefinition *to,
						 List *entries, SagaState **state);

/*
 * The entries of a log that a fork goes on from: those of steps that are over
 * and do not follow 'step', numbered anew.  NIL, and why, if there can be no
 * such fork.
 */
extern List *saga_refold_up_to(const SagaDefinition *from, const SagaDefinition *to,
							   List *entries, const char *step, char **why);

#endif							/* SAGA_REFOLD_H */
