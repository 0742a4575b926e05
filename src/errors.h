/*
 * errors.h
 *		The SQLSTATEs that are saga's own.  Everything else uses PostgreSQL's.
 */
#ifndef SAGA_ERRORS_H
#define SAGA_ERRORS_H

#include "utils/elog.h"

#define SAGA_ERRCODE(c3, c4, c5) MAKE_SQLSTATE('S', 'G', c3, c4, c5)

/* what a participant says, and what the barrier says for it */
#define ERRCODE_SAGA_DECLINED			SAGA_ERRCODE('B', '0', '1')
#define ERRCODE_SAGA_TRY_AGAIN			SAGA_ERRCODE('B', '0', '2')
#define ERRCODE_SAGA_KEY_REFUSED		SAGA_ERRCODE('B', '0', '3')	/* undone or claimed before it came */
#define ERRCODE_SAGA_STALE_EPOCH		SAGA_ERRCODE('B', '0', '4')	/* an old coordinator */
#define ERRCODE_SAGA_TOO_LATE			SAGA_ERRCODE('B', '0', '5')	/* past the claim's not-after */

#define ERRCODE_SAGA_HAS_VOTED			SAGA_ERRCODE('B', '0', '6')	/* a branch of two-phase commit, asked again */

#define ERRCODE_SAGA_RESULT_SHAPE		SAGA_ERRCODE('R', '0', '1')
#define ERRCODE_SAGA_TOKEN				SAGA_ERRCODE('T', '0', '1')
#define ERRCODE_SAGA_KEY_REUSE			SAGA_ERRCODE('K', '0', '1')
#define ERRCODE_SAGA_NOT_CONSISTENT		SAGA_ERRCODE('C', '0', '1')
#define ERRCODE_SAGA_CONSISTENCY_LATE	SAGA_ERRCODE('C', '0', '2')
#define ERRCODE_SAGA_DEFINITION			SAGA_ERRCODE('D', '0', '1')
#define ERRCODE_SAGA_LIMIT				SAGA_ERRCODE('L', '0', '1')

#endif							/* SAGA_ERRORS_H */
