/*
 * quarantine.c
 *		Which projection was being worked on when a process died (see
 *		quarantine.h).
 *
 * A function of a user's that crashes a worker takes shared memory with it:
 * the note has to survive in a file, and must cost nothing, so the file is
 * mapped.  It means nothing after a restore, and stands where backups skip it.
 * Called by the projector and the filler.  Touches no table.
 */
#include "postgres.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "miscadmin.h"
#include "pgstat.h"
#include "storage/fd.h"

#include "quarantine.h"

typedef struct Lane
{
	int64		now;			/* being worked on, 0: nothing */
	int64		suspect;		/* died on it the last time */
	int64		deaths;			/* in a row */
} Lane;

static Lane *lanes = NULL;
static Lane nowhere[SAGA_LANES];

void
saga_quarantine_open(void)
{
	char		path[MAXPGPATH];
	int			fd;
	void	   *map = MAP_FAILED;

	snprintf(path, sizeof(path), "%s/saga_%u.lanes", PG_STAT_TMP_DIR, MyDatabaseId);
	fd = BasicOpenFile(path, O_RDWR | O_CREAT | PG_BINARY);
	if (fd >= 0)
	{
		if (ftruncate(fd, sizeof(nowhere)) == 0)
			map = mmap(NULL, sizeof(nowhere), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		close(fd);
	}
	if (map == MAP_FAILED)
		ereport(LOG,
				(errcode_for_file_access(),
				 errmsg("could not map file \"%s\": %m", path),
				 errdetail("A projection that crashes its worker cannot be told from the others.")));
	lanes = map == MAP_FAILED ? nowhere : map;
}

int64
saga_quarantine_suspect(SagaLane lane)
{
	Lane	   *l = &lanes[lane];

	if (l->now != 0)
	{
		l->deaths = l->now == l->suspect ? l->deaths + 1 : 1;
		l->suspect = l->now;
		l->now = 0;
	}
	if (l->deaths < SAGA_QUARANTINE_AFTER)
		return 0;
	l->deaths = 0;
	return l->suspect;
}

void
saga_quarantine_enter(SagaLane lane, int64 projection)
{
	lanes[lane].now = projection;
}

void
saga_quarantine_leave(SagaLane lane)
{
	if (lanes[lane].now == lanes[lane].suspect)
		lanes[lane].deaths = 0;
	lanes[lane].now = 0;
}
