/*
 * projection_row.h
 *		Rows of saga.projection and saga.feed as sessions read them, and whose
 *		projection it is.
 */
#ifndef SAGA_PROJECTION_ROW_H
#define SAGA_PROJECTION_ROW_H

#include "postgres.h"

#include "access/xlogdefs.h"
#include "datatype/timestamp.h"
#include "nodes/pg_list.h"
#include "utils/snapshot.h"

typedef struct SagaProjectionRow
{
	int64		id;
	Oid			view;
	Oid			owner;
	char	   *query;
	char	   *search_path;
	bool		strict;			/* readers wait, whatever the setting */
	List	   *key;			/* of char *, or NIL */
	List	   *indexes;		/* of char * */
	Interval   *max_lag;		/* or NULL */
	char	   *state;
	char	   *reason;			/* or NULL */
	TimestampTz since;			/* when the state began */
	bool		filled;
	bool		stale;
	bool		plain;
	bool		own;			/* stands at a snapshot of its own: position and
								 * at are its own, else the feed's */
	XLogRecPtr	position;
	TimestampTz at;				/* DT_NOBEGIN: not known */
	int64		replaces;		/* projection whose place it takes when filled,
								 * or 0 */
} SagaProjectionRow;

/* The row of saga.feed. */
typedef struct SagaFeedStand
{
	XLogRecPtr	position;
	TimestampTz at;				/* DT_NOBEGIN: never */
	int64		batches;
} SagaFeedStand;

/*
 * Without rights, in the current memory context.  A NULL snapshot is the
 * state of now.  False: no such row.
 */
extern bool saga_projection_row(int64 id, Snapshot snapshot,
								SagaProjectionRow *row);
extern bool saga_projection_row_of_view(Oid view, SagaProjectionRow *row);
extern bool saga_projection_replacement(int64 id, SagaProjectionRow *row);
extern bool saga_feed_stand(Snapshot snapshot, SagaFeedStand *stand);

/* The little that a reader of a view needs; false if there is no such row. */
extern bool saga_projection_filled_under(int64 id, Snapshot snapshot,
										 bool *filled, bool *strict);

/*
 * The projection that a user names; 42704 if there is none, 42809 if it is
 * another kind of relation, 42501 without the right to read (or to change) it.
 * To change it is also to lock it against others who do.
 */
extern void saga_projection_to_read(const char *name, SagaProjectionRow *row);
extern void saga_projection_to_change(const char *name, SagaProjectionRow *row);
extern void saga_projection_lock(int64 id);

/* schema.view, quoted, for messages and statements */
extern char *saga_projection_name(Oid view);

/*
 * Which views are projections, from a cache of this process; almost free when
 * there is none.  Has *any_strict set if one of them is strict.
 */
extern bool saga_projection_views(bool *any_strict);
extern bool saga_projection_is_view(Oid relid, int64 *id, bool *strict);

/* For writers of the table in sessions: caches, and the projector at commit. */
extern void saga_projections_changed(void);

#endif							/* SAGA_PROJECTION_ROW_H */
