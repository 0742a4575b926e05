/*
 * feed_txn.c
 *		Buffers of decoded transactions: in memory, spilled to files, read.
 *
 * Called by feed_plugin.c (write) and by the projector (read, forget).  Knows
 * nothing of decoding.  A change is a SagaFeedRecord followed by its tuples;
 * records lie in chunks.  A transaction that grows large goes to a file of its
 * own as it comes; when all of them together are large, every complete one
 * goes to a file that they share, and which is deleted with its last.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "storage/buffile.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

#include "feed_private.h"

#define CHUNK_FIRST		256
#define CHUNK_LAST		(64 * 1024)
#define TXN_MEMORY		(4 * 1024 * 1024)
#define FEED_MEMORY		(64 * 1024 * 1024)
#define KEEP_MEMORY		(8 * 1024 * 1024)
#define SHARED_FILE		((int64) 256 * 1024 * 1024)

typedef struct SagaFeedChunk
{
	struct SagaFeedChunk *next;
	Size		size;			/* of data */
	Size		used;
} SagaFeedChunk;

#define CHUNK_HEADER	MAXALIGN(sizeof(SagaFeedChunk))
#define CHUNK_DATA(chunk)	((char *) (chunk) + CHUNK_HEADER)

typedef struct SagaFeedSpill
{
	BufFile    *file;
	int			users;			/* transactions in it */
	int			end_file;		/* where to append */
	off_t		end_offset;
	int64		bytes;
} SagaFeedSpill;

typedef struct SagaFeedBody
{
	SagaFeedChunk *first,
			   *last;
	Size		memory;
	SagaFeedSpill *spill;		/* what comes before the chunks, or NULL */
	int			start_file;
	off_t		start_offset;
	int64		frames;			/* chunks in the file, each after its size */
} SagaFeedBody;

struct SagaFeedReader
{
	SagaFeedTxn *txn;
	const char *data;			/* the chunk being read */
	Size		used;
	Size		position;
	SagaFeedChunk *next;		/* the one after it */
	int64		frames;			/* left in the file */
	int			file;
	off_t		offset;
	char	   *buffer;
	Size		buffer_size;
};

static SagaFeedSpill *
spill_make(SagaFeed *feed)
{
	ResourceOwner owner = CurrentResourceOwner;
	MemoryContext old = MemoryContextSwitchTo(feed->state->txns);
	SagaFeedSpill *spill = palloc0(sizeof(SagaFeedSpill));

	/* it outlives the (sub)transaction, and remembers the owner */
	CurrentResourceOwner = NULL;
	spill->file = BufFileCreateTemp(true);
	CurrentResourceOwner = owner;
	MemoryContextSwitchTo(old);
	return spill;
}

static void
spill_leave(SagaFeed *feed, SagaFeedSpill *spill)
{
	if (--spill->users > 0)
		return;
	if (feed->state->spill == spill)
		feed->state->spill = NULL;
	BufFileClose(spill->file);
	pfree(spill);
}

static void
free_chunks(SagaFeed *feed, SagaFeedBody *body)
{
	while (body->first)
	{
		SagaFeedChunk *chunk = body->first;

		body->first = chunk->next;
		pfree(chunk);
	}
	body->last = NULL;
	feed->memory -= body->memory;
	body->memory = 0;
}

/* Append the chunks to the file; they must follow what it has of the txn. */
static void
spill_chunks(SagaFeed *feed, SagaFeedBody *body, SagaFeedSpill *spill)
{
	if (BufFileSeek(spill->file, spill->end_file, spill->end_offset, SEEK_SET) != 0)
		elog(ERROR, "could not seek in a file of spilled changes");
	if (!body->spill)
	{
		body->spill = spill;
		body->start_file = spill->end_file;
		body->start_offset = spill->end_offset;
		spill->users++;
	}
	for (SagaFeedChunk *chunk = body->first; chunk; chunk = chunk->next)
	{
		if (chunk->used == 0)
			continue;
		BufFileWrite(spill->file, &chunk->used, sizeof(chunk->used));
		BufFileWrite(spill->file, CHUNK_DATA(chunk), chunk->used);
		body->frames++;
		spill->bytes += chunk->used;
	}
	BufFileTell(spill->file, &spill->end_file, &spill->end_offset);
	free_chunks(feed, body);
}

/* All complete transactions out of memory. */
static void
spill_all(SagaFeed *feed)
{
	dlist_iter	i;

	dlist_foreach(i, &feed->txns)
	{
		SagaFeedBody *body = dlist_container(SagaFeedTxn, node, i.cur)->body;

		if (!body->first)
			continue;
		if (body->spill)		/* the tail of a large one */
		{
			spill_chunks(feed, body, body->spill);
			continue;
		}
		if (!feed->state->spill || feed->state->spill->bytes > SHARED_FILE)
			feed->state->spill = spill_make(feed);
		spill_chunks(feed, body, feed->state->spill);
	}
}

SagaFeedTxn *
saga_feed_txn_make(SagaFeed *feed)
{
	MemoryContext txns = feed->state->txns;
	SagaFeedTxn *txn = MemoryContextAllocZero(txns, sizeof(SagaFeedTxn));

	txn->body = MemoryContextAllocZero(txns, sizeof(SagaFeedBody));
	return txn;
}

/* Zeroed, maxaligned room for a record, valid until the next call. */
char *
saga_feed_txn_reserve(SagaFeed *feed, SagaFeedTxn *txn, Size size)
{
	SagaFeedBody *body = txn->body;
	SagaFeedChunk *chunk = body->last;
	char	   *room;

	if (!chunk || chunk->size - chunk->used < size)
	{
		Size		wanted = chunk ? chunk->size * 2 + CHUNK_HEADER : CHUNK_FIRST - CHUNK_HEADER;

		wanted = Max(Min(wanted, CHUNK_LAST - CHUNK_HEADER), size);
		chunk = MemoryContextAllocHuge(feed->state->txns, CHUNK_HEADER + wanted);
		chunk->next = NULL;
		chunk->size = wanted;
		chunk->used = 0;
		if (body->last)
			body->last->next = chunk;
		else
			body->first = chunk;
		body->last = chunk;
		body->memory += CHUNK_HEADER + wanted;
		feed->memory += CHUNK_HEADER + wanted;
		feed->state->peak = Max(feed->state->peak, feed->memory);
	}
	room = CHUNK_DATA(chunk) + chunk->used;
	memset(room, 0, size);
	return room;
}

/* The record reserved last stays. */
void
saga_feed_txn_keep(SagaFeed *feed, SagaFeedTxn *txn, Size size)
{
	SagaFeedBody *body = txn->body;

	body->last->used += size;
	txn->size += size;
	txn->changes++;
	if (body->memory > TXN_MEMORY)
		spill_chunks(feed, body, body->spill ? body->spill : spill_make(feed));
	else if (feed->memory > FEED_MEMORY)
		spill_all(feed);
}

void
saga_feed_txn_free(SagaFeed *feed, SagaFeedTxn *txn)
{
	free_chunks(feed, txn->body);
	if (txn->body->spill)
		spill_leave(feed, txn->body->spill);
	pfree(txn->body);
	list_free(txn->relids);
	list_free(txn->truncated);
	list_free(txn->incomplete);
	pfree(txn);
}

void
saga_feed_forget(SagaFeed *feed, SagaFeedTxn *txn)
{
	struct SagaFeedState *state = feed->state;

	dlist_delete(&txn->node);
	feed->ntxns--;
	saga_feed_txn_free(feed, txn);
	if (feed->ntxns == 0 && !state->txn && state->peak > KEEP_MEMORY)
	{
		/* small pieces do not go back to the system one by one */
		MemoryContextReset(state->txns);
		state->peak = 0;
	}
}

/* Memory goes with its context; files do not. */
void
saga_feed_txns_close(SagaFeed *feed)
{
	while (!dlist_is_empty(&feed->txns))
		saga_feed_forget(feed, dlist_head_element(SagaFeedTxn, node, &feed->txns));
	if (feed->state->txn)
		saga_feed_txn_free(feed, feed->state->txn);
	feed->state->txn = NULL;
}

SagaFeedReader *
saga_feed_read(SagaFeedTxn *txn)
{
	SagaFeedReader *reader = palloc0(sizeof(SagaFeedReader));
	SagaFeedBody *body = txn->body;

	reader->txn = txn;
	reader->frames = body->frames;
	reader->file = body->start_file;
	reader->offset = body->start_offset;
	reader->next = body->first;
	return reader;
}

static void
read_spilled(BufFile *file, void *to, Size size)
{
	if (BufFileRead(file, to, size) != size)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not read from a file of spilled changes")));
}

static bool
next_chunk(SagaFeedReader *reader)
{
	reader->position = 0;
	if (reader->frames > 0)
	{
		/* others read and append in between, so seek every time */
		BufFile    *file = reader->txn->body->spill->file;

		if (BufFileSeek(file, reader->file, reader->offset, SEEK_SET) != 0)
			elog(ERROR, "could not seek in a file of spilled changes");
		read_spilled(file, &reader->used, sizeof(reader->used));
		if (reader->used > reader->buffer_size)
		{
			MemoryContext context = GetMemoryChunkContext(reader);

			if (reader->buffer)
				pfree(reader->buffer);
			reader->buffer_size = Max(reader->used, CHUNK_LAST);
			reader->buffer = MemoryContextAllocHuge(context, reader->buffer_size);
		}
		read_spilled(file, reader->buffer, reader->used);
		BufFileTell(file, &reader->file, &reader->offset);
		reader->data = reader->buffer;
		reader->frames--;
		return true;
	}
	if (!reader->next)
		return false;
	reader->data = CHUNK_DATA(reader->next);
	reader->used = reader->next->used;
	reader->next = reader->next->next;
	return true;
}

bool
saga_feed_next(SagaFeedReader *reader, SagaFeedChange *change)
{
	for (;;)
	{
		const SagaFeedRecord *record;
		char	   *at;

		while (reader->position >= reader->used)
			if (!next_chunk(reader))
				return false;

		at = unconstify(char *, reader->data) + reader->position;
		record = (const SagaFeedRecord *) at;
		at += MAXALIGN(sizeof(SagaFeedRecord));
		change->relid = record->relid;
		change->op = record->op;
		change->old_tuple = change->new_tuple = NULL;
		if (record->has_old)
		{
			change->old_tuple = (MinimalTuple) at;
			at += MAXALIGN(change->old_tuple->t_len);
		}
		if (record->has_new)
		{
			change->new_tuple = (MinimalTuple) at;
			at += MAXALIGN(change->new_tuple->t_len);
		}
		reader->position = at - reader->data;

		/* some may be of a layout that is gone */
		if (reader->txn->incomplete == NIL ||
			!list_member_oid(reader->txn->incomplete, record->relid))
			return true;
	}
}

void
saga_feed_read_end(SagaFeedReader *reader)
{
	if (reader->buffer)
		pfree(reader->buffer);
	pfree(reader);
}
