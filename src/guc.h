/*
 * guc.h
 *		The settings of saga.c, for those that read them.
 */
#ifndef SAGA_GUC_H
#define SAGA_GUC_H

extern int	saga_coordinators;
extern int	saga_executors;
extern int	saga_max_running;	/* sagas a coordinator holds in memory */
extern int	saga_safety_poll_interval;	/* ms */
extern int	saga_retention;		/* s */
extern int	saga_barrier_retention; /* s */
extern int	saga_max_payload;	/* bytes */
extern bool saga_log_payloads;
extern bool saga_allow_superuser_steps;
extern bool saga_allow_test;
extern char *saga_host_guard;
extern char *saga_operator;
extern bool saga_check_batches;
extern int	saga_test_delay;	/* ms */
extern int	saga_batch_rows;
extern int	saga_batch_time;	/* ms */
extern int	saga_max_slot_lag;	/* MB */
extern int	saga_read_consistency;	/* SagaConsistency */
extern int	saga_read_timeout;	/* ms */

#endif							/* SAGA_GUC_H */
