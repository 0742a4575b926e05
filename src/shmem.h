/*
 * shmem.h
 *		What saga's processes share: worker slots, the rings by which a commit
 *		wakes a coordinator, sessions that wait for an end, counters.
 *
 * Shared memory holds values only: nothing in it is needed for correctness,
 * and all of it may be lost at any instant.
 */
#ifndef SAGA_SHMEM_H
#define SAGA_SHMEM_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "port/atomics.h"
#include "storage/condition_variable.h"
#include "storage/dsm.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/spin.h"
#include "utils/uuid.h"

#define SAGA_MAX_DATABASES		64
#define SAGA_MAX_WORKERS		128
#define SAGA_MAX_COORDINATORS	16	/* slots with a ring, server-wide */
#define SAGA_RING_SIZE			16384
#define SAGA_MAX_PARTICIPANTS	256 /* (database, server) pairs with counters */
#define SAGA_BUCKETS			64

typedef enum SagaWorkerKind
{
	SAGA_WORKER_NONE,
	SAGA_WORKER_LAUNCHER,
	SAGA_WORKER_COORDINATOR,
	SAGA_WORKER_EXECUTOR,
	SAGA_WORKER_PROJECTOR,
	SAGA_WORKER_FILLER,
} SagaWorkerKind;

/* One running worker.  Claimed and freed under SagaShared->lock. */
typedef struct SagaWorkerSlot
{
	SagaWorkerKind kind;		/* NONE: free */
	Oid			dboid;
	int			number;			/* coordinator 0.. / executor 0.. */
	pid_t		pid;			/* 0 until attached */
	Latch	   *latch;			/* in shared memory, NULL until attached */
	uint64		generation;		/* of this occupation; never reused */
	bool		ready;			/* coordinator: recovered; executor: queues
								 * are published */
	TimestampTz ready_at;		/* coordinator: since when */
	TimestampTz started_at;
	dsm_handle	queues;			/* executor: its two message queues */
	uint64		serves;			/* executor: generation of the coordinator it
								 * works for; it never outlives that one */
	pg_atomic_uint32 asleep;	/* coordinator: set before it waits */
	/* counters for saga.stat_workers, written by the worker alone */
	pg_atomic_uint64 turns;		/* coordinator: commits; executor: batches */
	pg_atomic_uint64 items;		/* records written / actions run */
	pg_atomic_uint64 loaded;	/* sagas in memory */
	pg_atomic_uint64 errors;
	char		activity[160];	/* what it does or why it holds */
} SagaWorkerSlot;

typedef struct SagaRingEntry
{
	pg_uuid_t	saga_id;
	int64		inbox_id;		/* 0: a new saga, else a command for it */
	int32		priority;		/* of a new saga */
} SagaRingEntry;

typedef struct SagaRing
{
	LWLock		lock;
	Oid			dboid;
	int			coordinator;	/* -1: free */
	uint32		head;			/* next to read */
	uint32		tail;			/* next to write */
	bool		overflow;		/* entries were dropped: scan the tables */
	SagaRingEntry entries[SAGA_RING_SIZE];
} SagaRing;

typedef enum SagaDatabaseStatus
{
	SAGA_DB_UNKNOWN,			/* to be probed by coordinator 0 */
	SAGA_DB_ABSENT,				/* the extension is not there */
	SAGA_DB_PRESENT,
} SagaDatabaseStatus;

typedef struct SagaDatabase
{
	Oid			dboid;			/* InvalidOid: free */
	SagaDatabaseStatus status;
	bool		fresh;			/* the extension came or went: start without
								 * delay */
	bool		no_slot;		/* a worker could not be registered */
	pg_atomic_uint32 schedules; /* 1: they have changed, or a run has ended */
} SagaDatabase;

/*
 * What a projector and the sessions of its database tell each other.  An
 * entry is claimed under SagaShared->lock and kept while the database exists.
 */
typedef struct SagaFeedShared
{
	Oid			dboid;			/* InvalidOid: free */
	bool		wanted;			/* there are projections: the launcher runs a
								 * projector */
	TimestampTz not_before;		/* somebody drops the database: no projector
								 * until then */
	Latch	   *latch;			/* the projector's, NULL: none runs */
	pg_atomic_uint32 asleep;	/* it waits for commits: set its latch */
	pg_atomic_uint32 changed;	/* counts changes to the set of projections */
	pg_atomic_uint64 wanted_position;	/* somebody waits for this one */
	pg_atomic_uint64 position;	/* all commits before it are in the contents
								 * that others can see */
	pg_atomic_uint64 looked_at; /* when it last found nothing left to do */
	ConditionVariable moved;	/* the position did, or the projector left */
} SagaFeedShared;

typedef struct SagaWaiter
{
	pg_uuid_t	saga_id;
	Latch	   *latch;			/* NULL: free */
} SagaWaiter;

/* Participant counters; all atomics so that views read without a lock. */
typedef struct SagaParticipantStat
{
	Oid			dboid;
	Oid			serverid;		/* InvalidOid: free */
	pg_atomic_uint64 calls;
	pg_atomic_uint64 done;
	pg_atomic_uint64 declined;
	pg_atomic_uint64 transient;
	pg_atomic_uint64 broken;
	pg_atomic_uint64 unknown;
	pg_atomic_uint64 latency_us;	/* sum over answered calls */
	pg_atomic_uint64 latency_max_us;
	pg_atomic_uint32 connections;	/* open now */
	pg_atomic_uint32 in_flight;
	pg_atomic_uint32 queued;
	pg_atomic_uint32 circuit;	/* 0 closed, 1 open, 2 half-open */
	pg_atomic_uint64 connects;	/* attempts to connect */
} SagaParticipantStat;

typedef struct SagaShared
{
	LWLock		lock;			/* slots, databases, participants, rings' owner */
	Latch	   *launcher_latch;
	bool		relist;			/* an extension was created: look again */
	uint64		next_generation;
	SagaDatabase databases[SAGA_MAX_DATABASES];
	pg_atomic_uint32 nfeeds;	/* entries ever claimed in feeds */
	SagaFeedShared feeds[SAGA_MAX_DATABASES];
	SagaWorkerSlot workers[SAGA_MAX_WORKERS];
	SagaParticipantStat participants[SAGA_MAX_PARTICIPANTS];
	LWLock		waiter_lock;
	pg_atomic_uint32 nwaiters;
	int			maxwaiters;
	/* SagaRing rings[SAGA_MAX_COORDINATORS] and SagaWaiter waiters[] follow */
} SagaShared;

extern SagaShared *SagaShmem;	/* NULL: the library was not preloaded */

extern void saga_shmem_request(void);	/* from _PG_init, preloading */
extern bool saga_preloaded(void);
extern void saga_require_preload(void); /* 55000 with the line to set */

/* ---- worker side ---- */
extern SagaWorkerSlot *saga_slot_claim(SagaWorkerKind kind, Oid dboid,
									   int number);	/* launcher */
extern SagaWorkerSlot *saga_slot_attach(int index);	/* the worker itself */
extern void saga_slot_free(SagaWorkerSlot *slot);
extern int	saga_slot_index(SagaWorkerSlot *slot);
extern void saga_wake_launcher(void);

/* ---- rings ---- */
extern SagaRing *saga_ring_claim(Oid dboid, int coordinator);
extern void saga_ring_release(SagaRing *ring);

/* Take up to max entries; *overflow is set and cleared in the ring. */
extern int	saga_ring_take(SagaRing *ring, SagaRingEntry *out, int max,
						   bool *overflow);

/* In a session: at commit of this transaction, tell the coordinator. */
extern void saga_wake_at_commit(const pg_uuid_t *saga_id, int64 inbox_id,
								int32 priority);
extern int	saga_bucket(const pg_uuid_t *saga_id);

/* In CREATE EXTENSION: at commit, have the launcher look at this database. */
extern void saga_installed_at_commit(void);

/* ---- schedules ---- */

/* Have coordinator 0 look at the schedules, now or when this commits. */
extern void saga_schedules_wake(void);
extern void saga_schedules_wake_at_commit(void);

/* In coordinator 0: has somebody?  Takes the wake-up. */
extern bool saga_schedules_changed(void);

/* ---- waiting for an end ---- */
extern SagaWaiter *saga_waiter_register(const pg_uuid_t *saga_id);
extern void saga_waiter_forget(SagaWaiter *waiter);
extern void saga_waiters_wake(const pg_uuid_t *ids, int n);

/* ---- participants ---- */

/* This database's counters for a server; never NULL (a dummy if there is none). */
extern SagaParticipantStat *saga_participant_stat(Oid serverid);

#endif							/* SAGA_SHMEM_H */
