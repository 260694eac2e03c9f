"""Going down from Prisma's migrations, which Prisma itself does not do."""
