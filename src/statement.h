/*
 * statement.h
 *		A local action run once (statement.c).
 */
#ifndef SAGA_STATEMENT_H
#define SAGA_STATEMENT_H

#include "definition.h"

/*
 * Run the statement of a call, whose parameters have these texts (or NULLs),
 * as the current user and within the caller's SPI connection; returns its
 * result, shaped as the call says, in 'context'.
 */
extern Jsonb *saga_statement_run(const SagaCall *call, char **values,
								 MemoryContext context);

#endif							/* SAGA_STATEMENT_H */
