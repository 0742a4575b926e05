/*
 * result.h
 *		What a local action returned, as the JSON that is stored (API.md 2,
 *		"Results").
 */
#ifndef SAGA_RESULT_H
#define SAGA_RESULT_H

#include "postgres.h"

#include "definition.h"

/*
 * Shape the result of the SPI call just made (its return code, SPI_processed,
 * SPI_tuptable), allocated in 'context'; NULL = null.  Errors: SGR01 more than
 * one row, SGB01 not the expected number of rows, SGL01 too large.
 */
extern Jsonb *saga_result_from_spi(const SagaCall *call, int rc,
								   MemoryContext context);

#endif							/* SAGA_RESULT_H */
