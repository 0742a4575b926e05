/*
 * projection_view.h
 *		The public view of a projection and its storage, as objects of the
 *		database: made, replaced, handed on, swept away.
 */
#ifndef SAGA_PROJECTION_VIEW_H
#define SAGA_PROJECTION_VIEW_H

#include "postgres.h"

#include "nodes/pg_list.h"

#include "projection.h"

/* ---- sessions ---- */

/*
 * The view that shows the live query until storage is filled, as the current
 * user; name is qualified and quoted.
 */
extern void saga_view_create(const SagaProgram *program, const char *name);

/* 42P16 if a view of these columns cannot become one of the program's. */
extern void saga_view_require_columns(Oid view, const SagaProgram *program);

/* Storage tables and indexes, owned by the projection's owner. */
extern void saga_storage_create(SagaProgram *program, List *indexes, Oid owner);
extern void saga_storage_drop(int64 id);
extern void saga_storage_set_owner(int64 id, Oid owner);

/* ---- the projector, in a transaction with a snapshot ---- */

/*
 * When a fill has been committed: a projection that replaces another one takes
 * its place, view, grants and all, as soon as it stands where the feed stands.
 * True when there is nothing (left) to do; false if it has not caught up or
 * the view could not be locked, and it should be called again in a second or
 * so.  Each call in a transaction of its own.
 */
extern bool saga_projection_filled(int64 id);

/*
 * When no snapshot older than the fill is left: the view reads storage alone
 * from now on.  As above.  (Sets saga.projection.plain.)
 */
extern bool saga_projection_make_plain(int64 id);

/*
 * Remove rows whose view is gone, with their storage, and storage without a
 * row; owners follow their views.  True if anything was done.  Takes strong
 * locks on what it removes; what it cannot have at once stays for another
 * time.
 */
extern bool saga_projection_sweep(void);

#endif							/* SAGA_PROJECTION_VIEW_H */
