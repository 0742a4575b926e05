/*
 * feed_private.h
 *		What feed*.c share among themselves.
 */
#ifndef SAGA_FEED_PRIVATE_H
#define SAGA_FEED_PRIVATE_H

#include "feed.h"

#include "replication/logical.h"
#include "utils/hsearch.h"

#define SAGA_FEED_PLUGIN "saga" /* the library, as the slot names it */
#define SAGA_FEED_MAX_HEARD 128

/* How the old image of a row comes, for the tracked columns. */
typedef enum SagaFeedImage
{
	SAGA_FEED_IMAGE_NONE,
	SAGA_FEED_IMAGE_KEY,		/* they are in the identity index */
	SAGA_FEED_IMAGE_FULL,
} SagaFeedImage;

typedef struct SagaFeedTable
{
	Oid			relid;			/* key */
	TupleDesc	desc;			/* layout of copies */
	bool	   *keep;			/* by attribute: copied */
	int			nkeep;
	bool		all_columns;

	/* numbers of the last transaction that lists it in ... */
	uint64		noted,			/* relids */
				truncated,
				spoilt;			/* incomplete */

	/* what the relation of the past says; until its definition changes */
	bool		checked;
	bool		fits;			/* kept columns have the layout's types */
	bool		whole;			/* same columns, all kept: copy as it is */
	SagaFeedImage image;
} SagaFeedTable;

/* A transaction decoded and not kept, maybe not yet visible. */
typedef struct SagaFeedPassed
{
	TransactionId xid;
	XLogRecPtr	commit_lsn;
} SagaFeedPassed;

/* An invalidation heard of: a relation, or an entry of a system cache. */
typedef struct SagaFeedHeard
{
	int			cacheid;		/* -1: relation */
	uint32		value;			/* OID or hash value */
} SagaFeedHeard;

struct SagaFeedState
{
	MemoryContext context;		/* of all that lives as long as the feed */
	MemoryContext txns;			/* transactions and their changes */
	MemoryContext work;			/* one call of decode */
	LogicalDecodingContext *ctx;
	bool		broken;			/* an error came out of the context */
	XLogRecPtr	refused;		/* flush position at which reading stopped */

	HTAB	   *tables;
	Oid			last_relid;		/* the table looked up last, */
	SagaFeedTable *last_table;	/* NULL: not tracked */

	/* the transaction being copied */
	SagaFeedTxn *txn;
	uint64		number;			/* given out last */
	FullTransactionId near_xid;	/* 32-bit ones are relative to it */
	uint32		ncopied;		/* changes since interrupts were looked at */
	int			nattrs;			/* size of these */
	Datum	   *old_values,
			   *new_values;
	bool	   *old_nulls,
			   *new_nulls;
	struct SagaFeedSpill *spill;	/* where small transactions go now */
	Size		peak;			/* of memory, since it was given back */

	SagaFeedPassed *passed;		/* commit order */
	int			npassed,
				max_passed,
				prune_at;

	/* caches */
	bool		quiet;			/* we invalidate ourselves */
	bool		heard_all;
	int			nheard;
	SagaFeedHeard heard[SAGA_FEED_MAX_HEARD];
	XLogRecPtr	heard_upto;		/* all of them were written before this */

	/* the slot */
	XLogRecPtr	confirmed,
				saved;
	TimestampTz saved_at;
};

/* feed.c */
extern bool saga_feed_opening;	/* we are making a context just now */

/* feed_plugin.c */
extern void saga_feed_forget_table_check(SagaFeed *feed, Oid relid);

/* feed_txn.c: a record is reserved, filled, and then kept or not */
extern SagaFeedTxn *saga_feed_txn_make(SagaFeed *feed);
extern char *saga_feed_txn_reserve(SagaFeed *feed, SagaFeedTxn *txn, Size size);
extern void saga_feed_txn_keep(SagaFeed *feed, SagaFeedTxn *txn, Size size);
extern void saga_feed_txn_free(SagaFeed *feed, SagaFeedTxn *txn);
extern void saga_feed_txns_close(SagaFeed *feed);

/* How a change lies in a chunk; its tuples follow, each maxaligned. */
typedef struct SagaFeedRecord
{
	Oid			relid;
	uint8		op;
	bool		has_old;
	bool		has_new;
} SagaFeedRecord;

/* feed_inval.c */
extern void saga_feed_watch(SagaFeed *feed);
extern void saga_feed_unwatch(void);
extern void saga_feed_drop_stale(SagaFeed *feed);
extern void saga_feed_stale_done(SagaFeed *feed);

#endif							/* SAGA_FEED_PRIVATE_H */
