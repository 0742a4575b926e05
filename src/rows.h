/*
 * rows.h
 *		Rows of our own tables by primary key, below SQL: what the hot paths
 *		(start, the coordinator's turn) write thousands of times a second.
 *
 * No rights are checked and no trigger fires: only for tables of schema saga.
 * All calls belong to one transaction: open, use, close.
 */
#ifndef SAGA_ROWS_H
#define SAGA_ROWS_H

#include "postgres.h"

#include "storage/lockdefs.h"
#include "utils/relcache.h"

#define SAGA_MAX_COLUMNS 32

typedef struct SagaTable SagaTable;

extern SagaTable *saga_table_open(const char *name, LOCKMODE lockmode);
extern SagaTable *saga_table_open_oid(Oid relid, LOCKMODE lockmode);
extern void saga_table_close(SagaTable *table); /* flushes */

/* Buffered; values are copied at once.  Visible after the flush. */
extern void saga_table_insert(SagaTable *table, const Datum *values,
							  const bool *nulls);
extern void saga_table_flush(SagaTable *table);

/*
 * By primary key, as the active snapshot sees it; false if there is none.
 * Fetched values point into memory of the table's and last until the next
 * call.
 */
extern bool saga_table_fetch(SagaTable *table, const Datum *key,
							 Datum *values, bool *nulls);
extern bool saga_table_update(SagaTable *table, const Datum *key,
							  const Datum *values, const bool *nulls,
							  const bool *replace);
extern bool saga_table_delete(SagaTable *table, const Datum *key);

/* Xmin of the row last fetched: was it this transaction that wrote it? */
extern bool saga_table_fetched_is_ours(SagaTable *table);

#endif							/* SAGA_ROWS_H */
