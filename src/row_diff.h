/*
 * row_diff.h
 *		Which rows has this transaction changed since a snapshot, and how?
 */
#ifndef SAGA_ROW_DIFF_H
#define SAGA_ROW_DIFF_H

#include "postgres.h"

#include "utils/jsonb.h"
#include "utils/snapshot.h"

/* A row that is not what it was; or with a note, a table that is not compared. */
typedef struct SagaRowChange
{
	Oid			relid;
	Jsonb	   *key;			/* of its primary key, or NULL */
	Jsonb	   *before;			/* NULL: it was not there */
	Jsonb	   *after;			/* NULL: it is gone */
	const char *note;
} SagaRowChange;

/*
 * All rows that this transaction has written since the snapshot (a registered
 * one of its own) and that are not as they were; of tables that the role may
 * read, in order of table and key.  Other tables have a note.
 */
extern void saga_row_diff(Snapshot before, Oid role,
						  void (*found) (void *arg, const SagaRowChange *change),
						  void *arg);

#endif							/* SAGA_ROW_DIFF_H */
