/*
 * projector.h
 *		Between the files of the projector: the projections in memory
 *		(projector_set.c), the batch (projector_batch.c), the loop
 *		(projector.c), the fill of one projection (filler.c).
 */
#ifndef SAGA_PROJECTOR_H
#define SAGA_PROJECTOR_H

#include "postgres.h"

#include "access/attmap.h"
#include "access/xlogdefs.h"
#include "nodes/bitmapset.h"
#include "nodes/pg_list.h"

#include "feed.h"
#include "feed_shared.h"
#include "handler.h"
#include "projection.h"

typedef enum SagaProjectionState
{
	SAGA_P_FILLING,				/* nothing to show yet */
	SAGA_P_FOLLOWING,
	SAGA_P_PAUSED,
	SAGA_P_PARKED,
	SAGA_P_REBUILDING,			/* old rows are shown meanwhile */
} SagaProjectionState;

/* A source as the catalogs describe it; the first of a list is of the views. */
typedef struct SagaDigest
{
	uint64		definition;
	uint64		files;			/* that hold its rows */
} SagaDigest;

/*
 * A row of saga.projection, and what upkeep needs.  It either stands where
 * the feed stands (snapshot is NULL) or has a snapshot of its own, and then
 * transactions are kept for it.
 */
typedef struct SagaProjection
{
	MemoryContext context;
	int64		id;
	Oid			view;
	Oid			owner;
	char	   *query;
	char	   *search_path;
	List	   *key;
	char	   *name;			/* of the view, for messages */
	char	   *shape;			/* of the rows in storage */
	SagaProjectionState state;
	bool		filled;
	bool		stale;
	bool		plain;
	int64		fill;
	Datum		snapshot;		/* pg_snapshot, or 0 */
	XLogRecPtr	position;		/* goes with snapshot */

	/* contents that are loaded again with the row */
	MemoryContext row_context;

	/* all of a build in a context of its own */
	MemoryContext program_context;
	SagaProgram *program;		/* NULL: could not be built */
	SagaApply  *apply;
	List	   *built_on;		/* of SagaDigest *: what the program was built on */
	List	   *filled_on;		/* what the contents were; NIL: not known */
	bool		unseen;			/* its sources may differ from built_on */

	/* a fill to come */
	bool		tracked;		/* decoding copies its tables */
	uint64		first;			/* number of the first transaction kept for it */
	TransactionId plain_after;	/* the view may be made plain when no older
								 * snapshot is left; Invalid: not known yet */
} SagaProjection;

/* A physical table that is decoded, and the sources that it is part of. */
typedef struct SagaTrackedRoot
{
	Oid			root;
	AttrMap    *map;			/* root's columns from the table's; NULL: the same */
} SagaTrackedRoot;

typedef struct SagaTracked
{
	Oid			relid;			/* hash key */
	TupleDesc	desc;
	Bitmapset  *columns;
	bool		all_columns;
	List	   *roots;			/* of SagaTrackedRoot * */
} SagaTracked;

/* The row of saga.feed. */
typedef struct SagaFeedRow
{
	char		slot[NAMEDATALEN];
	char	   *identity;
	Datum		snapshot;		/* 0: none yet */
	XLogRecPtr	position;
	int64		batches;
	int32		timeline;
} SagaFeedRow;

/* ---- projector_set.c ---- */
extern List *saga_projections;	/* of SagaProjection * */
extern List *saga_handlers;		/* of SagaHandler * */
extern bool saga_projections_dirty; /* a source's definition may have changed */
extern bool saga_views_dirty;	/* that of a view in a query, too */
extern bool saga_set_touched;	/* a transaction has changed projections here as
								 * well as in the table; who begins one that may
								 * be rolled back clears it */

extern void saga_set_init(void);

/* In a transaction with SPI and a snapshot: read the table again. */
extern void saga_set_load(SagaFeed *feed);
extern void saga_set_load_one(int64 id);	/* in the filler */

/* After a rollback: all is read and built again by saga_set_load(). */
extern void saga_set_discard(void);

/* Build (again) the program; false and parked-with-reason if that fails. */
extern bool saga_set_build(SagaProjection *p);
extern void saga_set_track(SagaFeed *feed);
extern uint64 saga_set_first;	/* the first transaction with all tables and
								 * columns of now has this number or a later one */
extern SagaTracked *saga_set_tracked(Oid relid);
extern List *saga_set_tables(void); /* OIDs of all tables, ascending */
extern int	saga_set_widest(void);	/* columns of the widest table tracked */

/* As the catalogs are now, to be compared with built_on and filled_on. */
extern List *saga_set_digests(const SagaProgram *program);
extern bool saga_digests_equal(List *a, List *b);

/* The contents come from these; keeps them in the row, too. */
extern void saga_set_filled_on(SagaProjection *p, List *digests);

/* Change the row; reason and sqlstate may be NULL. */
extern void saga_set_state(SagaProjection *p, SagaProjectionState state,
						   bool stale, const char *reason, const char *sqlstate);

/* Give it the snapshot and position it stands at, or (0) the feed's. */
extern void saga_set_snapshot(SagaProjection *p, Datum snapshot,
							  XLogRecPtr position);
/*
 * Must it be kept beyond the batch at this snapshot (a pg_snapshot, or 0)?
 */
extern bool saga_set_keeps(Datum snapshot, SagaFeedTxn *txn);
extern bool saga_projection_keeps(const SagaProjection *p, SagaFeedTxn *txn);
extern bool saga_projection_reads(const SagaProjection *p, List *relids);
extern Datum saga_snapshot_copy(Datum snapshot, MemoryContext context);
extern bool saga_snapshot_sees(Datum snapshot, FullTransactionId xid);
extern const char *saga_sqlstate_text(int sqlerrcode);

/* In coordinator 0, at its start: have a projector run if there is work. */
extern void saga_projector_if_needed(void);

/* ---- projector_handlers.c ---- */
extern void saga_set_load_handlers(SagaFeed *feed, const SagaFeedRow *row);

/* Start those whose table is tracked now; in a transaction. */
extern void saga_set_start_handlers(SagaFeed *feed, const SagaFeedRow *row);

/*
 * Let handlers follow what the snapshot sees.  Returns ms until there is more
 * to do, or -1; *commit is moved to the last commit made.
 */
extern long saga_handlers_follow(SagaFeed *feed, const SagaFeedRow *row,
								 XLogRecPtr *commit);

/* ---- projector.c ---- */
extern void saga_projector_leave(void) pg_attribute_noreturn();

/* ---- projector_batch.c ---- */

/*
 * One batch: everything visible now.  Returns false if nothing was done for
 * now (a lock was not to be had) and it should be tried again soon; nothing
 * decoded may be forgotten before saga_set_touched has been looked at.
 */
extern bool saga_batch(SagaFeed *feed, SagaFeedRow *row);

/* Nobody's fault: to be tried again. */
extern bool saga_error_is_transient(const ErrorData *error);

#endif							/* SAGA_PROJECTOR_H */
